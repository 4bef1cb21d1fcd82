// A record as the rules see it: what is asked, what is answered, and cheap facts about both.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>

#include "data/records/record.h"

namespace graft::data {

using ByteSet = std::bitset<256>;
ByteSet bytes_of(std::string_view text);

class Subject {
 public:
  // The record must outlive the subject.
  explicit Subject(const Record& record);

  const Record& record() const { return record_; }
  const std::string& prompt() const { return prompt_; }
  std::string_view answer() const { return answer_; }
  int answer_message() const { return answer_message_; }  // -1: there is none
  bool has(char byte) const { return bytes_.test(static_cast<unsigned char>(byte)); }  // anywhere
  const ByteSet& bytes() const { return bytes_; }
  int64_t digit_count() const { return digit_count_; }  // decimal digits, in all messages
  // An alpaca record's two parts; other schemas have everything in the instruction.
  std::string_view instruction() const { return instruction_; }
  std::string_view input() const { return input_; }
  // The answer is, or holds, program text or markup.
  bool answer_is_code() const { return answer_is_code_; }
  // The prompt asks for, or talks about, program text or markup.
  bool prompt_is_about_code() const;
  // The prompt asks for a dialogue, a role or a script, so speakers may be named.
  bool prompt_is_about_dialogue() const;

 private:
  const Record& record_;
  std::string prompt_;
  std::string_view instruction_;
  std::string_view input_;
  std::string_view answer_;
  int answer_message_ = -1;
  ByteSet bytes_;
  int64_t digit_count_ = 0;
  bool answer_is_code_ = false;
};

}  // namespace graft::data

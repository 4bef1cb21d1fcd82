// The functions behind the rows of rules.cpp, by file.
#pragma once

#include <optional>

#include "data/curate/rules.h"

namespace graft::data {

// rules_answer.cpp: what is wrong with an answer as an answer.
std::optional<Finding> check_roles(const Subject& subject, double threshold);
std::optional<Finding> check_empty_prompt(const Subject& subject, double threshold);
std::optional<Finding> check_empty_output(const Subject& subject, double threshold);
std::optional<Finding> check_marker_output(const Subject& subject, double threshold);
std::optional<Finding> check_noinput_marker(const Subject& subject, double threshold);
std::optional<Finding> check_refusal(const Subject& subject, double threshold);
std::optional<Finding> check_echo(const Subject& subject, double threshold);
std::optional<Finding> check_missing_input(const Subject& subject, double threshold);
std::optional<Finding> check_wrong_arithmetic(const Subject& subject, double threshold);
std::optional<Finding> check_one_word_output(const Subject& subject, double threshold);
std::optional<Finding> check_url_in_prompt(const Subject& subject, double threshold);

// rules_ending.cpp: answers that stop too early or do not stop.
std::optional<Finding> check_truncated(const Subject& subject, double threshold);
std::optional<Finding> check_repetition(const Subject& subject, double threshold);

// rules_text.cpp: bytes and marks that do not belong into text.
std::optional<Finding> check_template_leak(const Subject& subject, double threshold);
std::optional<Finding> check_control_characters(const Subject& subject, double threshold);
std::optional<Finding> check_mojibake(const Subject& subject, double threshold);
std::optional<Finding> check_literal_escapes(const Subject& subject, double threshold);
std::optional<Finding> check_html_residue(const Subject& subject, double threshold);

// rules_pii.cpp: personal data and secrets, validated where a checksum exists.
std::optional<Finding> check_email(const Subject& subject, double threshold);
std::optional<Finding> check_phone(const Subject& subject, double threshold);
std::optional<Finding> check_secret(const Subject& subject, double threshold);
std::optional<Finding> check_account_number(const Subject& subject, double threshold);

}  // namespace graft::data

// Rotary frequencies: the plain ones and the six ways of stretching them over longer texts.
#pragma once

#include <cstdint>
#include <vector>

namespace graft::train {

enum class RopeType { kDefault, kLinear, kLlama3, kDynamic, kYarn, kLongrope };

// One rotation as config.json describes it. Fields that a type does not name are not read for it.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;           // even; the first elements of a head turn
  double factor = 1;                // linear, llama3, dynamic, yarn
  int64_t max_positions = 0;        // dynamic: texts up to it are not stretched
  int64_t original_positions = 0;   // llama3, yarn, longrope: of the pretraining
  double low_frequency = 1;         // llama3
  double high_frequency = 4;        // llama3
  double beta_fast = 32;            // yarn
  double beta_slow = 1;             // yarn
  bool truncate = true;             // yarn
  double cos_sin_scale = 1;         // yarn and longrope: attention_factor
  std::vector<float> short_factor;  // longrope, [rotary_dim / 2]
  std::vector<float> long_factor;
};

// The frequencies depend on how long the text is. Texts with the same class have the same ones.
//   default, linear, llama3, yarn  0
//   dynamic                        0 up to max_positions, then the length
//   longrope                       0 up to original_positions, then 1
int64_t rope_length_class(const RopeConfig& rope, int64_t text_length);

// Inverse frequencies [rotary_dim / 2] of a text of this length, in float32 with the operations of
// transformers' modeling_rope_utils.py, whose formulas these are:
//   default   theta^(-2i/d)
//   linear    (arXiv 2306.15595) divided by factor
//   llama3    divided by factor for long waves, as they are for short ones, blended between
//   dynamic   theta grows with the length (NTK-aware scaling)
//   yarn      (arXiv 2309.00071) divided by factor along a ramp over i
//   longrope  (arXiv 2402.13753) divided by short_factor[i] or long_factor[i]
std::vector<float> rope_frequencies(const RopeConfig& rope, int64_t text_length);

}  // namespace graft::train

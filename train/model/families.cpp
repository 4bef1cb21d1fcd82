#include "train/model/families.h"

namespace graft::train {
namespace {

// The defaults are those of the configuration classes of transformers 5.23.
constexpr Family kFamilies[] = {
    {
        // Llama 1, 2, 3, 3.1, 3.2, TinyLlama, SmolLM 1 and 2, Yi, and many more
        .model_type = "llama",
        .keys = R"({"num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false})",
        .peft_targets = "q_proj v_proj",
    },
    {
        // Mistral 7B, Nemo
        .model_type = "mistral",
        .keys = R"({"num_key_value_heads": 8, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "sliding_window": 4096})",
        .window = WindowRule::kEvery,
        .peft_targets = "q_proj v_proj",
    },
    {
        // Qwen 2 and 2.5
        .model_type = "qwen2",
        .keys = R"({"num_key_value_heads": 32, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "use_sliding_window": false,
                    "sliding_window": 4096, "max_window_layers": 28, "layer_types": null})",
        .qkv_bias = true,
        .window = WindowRule::kAboveLayer,
        .peft_targets = "q_proj v_proj",
    },
    {
        .model_type = "qwen3",
        .keys = R"({"num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
                    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "attention_bias": false,
                    "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
                    "layer_types": null})",
        .qk_norm = QkNorm::kPerHead,
        .window = WindowRule::kAboveLayer,
        .peft_targets = "q_proj v_proj",
    },
    {
        .model_type = "gemma",
        .keys = R"({"num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
                    "hidden_activation": null, "max_position_embeddings": 8192,
                    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
                    "attention_bias": false})",
        .norm = GRAFT_RMSNORM_ONE_PLUS_WEIGHT,
        .scaled_embedding = true,
        .peft_targets = "q_proj v_proj",
    },
    {
        .model_type = "gemma2",
        .keys = R"({"num_key_value_heads": 4, "head_dim": 256,
                    "hidden_activation": "gelu_pytorch_tanh", "hidden_act": null,
                    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": true, "attention_bias": false,
                    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": null,
                    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0})",
        .placement = Placement::kSandwich,
        .norm = GRAFT_RMSNORM_ONE_PLUS_WEIGHT,
        .scaled_embedding = true,
        .window = WindowRule::kPattern,
        .window_pattern = 2,
        .peft_targets = "q_proj v_proj",
    },
    {
        // Gemma 3 text; a multimodal "gemma3" holds it as text_config, which may leave out sizes
        .model_type = "gemma3_text",
        .keys = R"({"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
                    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": null,
                    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
                    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
                    "tie_word_embeddings": true, "attention_bias": false,
                    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": null,
                    "sliding_window_pattern": 6,
                    "final_logit_softcapping": null, "attn_logit_softcapping": null})",
        .placement = Placement::kSandwich,
        .norm = GRAFT_RMSNORM_ONE_PLUS_WEIGHT,
        .qk_norm = QkNorm::kPerHead,
        .scaled_embedding = true,
        .window = WindowRule::kPattern,
        .window_pattern = 6,
        .local_rope = true,
        .peft_targets = "q_proj v_proj",
    },
    {
        // Phi 3, 3.5, 4 and 4-mini
        .model_type = "phi3",
        .keys = R"({"num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
                    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                    "tie_word_embeddings": false, "sliding_window": null})",
        .fused = true,
        .window = WindowRule::kEvery,
    },
    {
        .model_type = "olmo2",
        .keys = R"({"num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "attention_bias": false})",
        .placement = Placement::kPost,
        .norm = GRAFT_RMSNORM_WEIGHT_ONCE,
        .qk_norm = QkNorm::kFull,
    },
    {
        .model_type = "granite",
        .keys = R"({"num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
                    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
                    "attention_multiplier": 1.0})",
    },
    {
        .model_type = "smollm3",
        .keys = R"({"num_key_value_heads": 4, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
                    "rope_theta": 2000000.0, "tie_word_embeddings": true, "attention_bias": false,
                    "mlp_bias": false, "use_sliding_window": false, "sliding_window": null,
                    "layer_types": null, "no_rope_layers": null, "no_rope_layer_interval": 4})",
        .window = WindowRule::kWithoutRope,
    },
    {
        .model_type = "mixtral",
        .keys = R"({"num_key_value_heads": 8, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                    "rope_theta": 1000000.0, "tie_word_embeddings": false, "sliding_window": null,
                    "num_local_experts": 8, "num_experts": 8, "num_experts_per_tok": 2})",
        .window = WindowRule::kEvery,
        .experts = ExpertNames::kMixtral,
        .renormalises = true,
        .peft_targets = "q_proj v_proj",
    },
    {
        .model_type = "qwen3_moe",
        .keys = R"({"num_key_value_heads": 4, "head_dim": null, "hidden_act": "silu",
                    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "attention_bias": false,
                    "use_sliding_window": false, "sliding_window": 4096, "num_experts": 128,
                    "num_local_experts": 128, "num_experts_per_tok": 8,
                    "moe_intermediate_size": 768, "norm_topk_prob": false,
                    "decoder_sparse_step": 1, "mlp_only_layers": null})",
        .qk_norm = QkNorm::kPerHead,
        .window = WindowRule::kEvery,
        .experts = ExpertNames::kQwen,
    },
};

}  // namespace

std::span<const Family> families() {
  return kFamilies;
}

}  // namespace graft::train

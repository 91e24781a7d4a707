// A decoding step of the whole model in one call: embeddings, blocks, final norm and head.
//
// Compiled for a dtype of weights and cache, PRECISION (0 float32, 1 bfloat16, 2 int8), and for a HEAD_WIDTH, a
// multiple of 16. The arguments are plain C structures, which `kernels/step.py` mirrors; nothing here depends on torch.

#include <omp.h>

#include <cmath>
#include <exception>

#include "cached_attention.h"
#include "linear.h"
#include "redraft.h"
#include "simd.h"

namespace {

struct Block {
  const float *norm_1, *norm_2;  // weights, padded with zeros to whole vectors
  Linear qkv, attention_proj, mlp_fc, mlp_proj;
  int64_t num_heads;
  float attention_scale;
};

struct Model {
  int64_t width, head_width, num_blocks, num_tokens, num_positions;
  double norm_eps;
  const float *token_embeddings, *position_embeddings;  // (tokens, width), (positions, width)
  const Block* blocks;
  const float* final_norm;
  Linear head;
};

struct Call {
  const int64_t *tokens, *positions;  // (images, queries)
  const Cache* caches;                // (images)
  int64_t images, queries;
  float* logits;  // (images, queries, colours), or null: no logits
  int64_t num_threads;
};

constexpr int64_t MAX_QUERIES_PER_PASS = 4;  // the maximum of queries_per_pass()

int64_t padded(int64_t count) { return (count + TILE - 1) / TILE * TILE; }

// x * rsqrt(mean(x^2) + eps) * weight, packed as inputs of the linear layer that follows.
void rms_norm(const float* x, const float* weight, const Model& model, int64_t row, PackedInputs& out) {
  FloatVec squares{};
  for (int64_t i = 0; i < model.width; i += LANES) squares += load(x + i) * load(x + i);
  const double mean = static_cast<double>(sum(squares)) / static_cast<double>(model.width);
  const float scale = static_cast<float>(1 / std::sqrt(mean + model.norm_eps));
  for (int64_t i = 0; i < model.width; i += LANES) {
    float values[LANES];
    store(values, load(x + i) * scale * load(weight + i));
    out.write(row, i, values, std::min(LANES, model.width - i));
  }
}

// The buffers of a call, and the computation. The residual stream is (rows, stride), with zeros after the width.
class Step {
 public:
  Step(const Model& model, const Call& call)
      : model_(model),
        call_(call),
        rows_(call.images * call.queries),
        stride_(padded(model.width)),
        chunks_(split_rows(rows_)),
        batch_(call.caches, call.positions, call.images, call.queries),
        score_capacity_(batch_.capacity()),
        residual_(new float[rows_ * stride_]()),
        scores_(new float[call.num_threads * MAX_QUERIES_PER_PASS * score_capacity_]),
        attention_outputs_(chunks_, rows_, max_inputs(&Block::attention_proj), model.blocks[0].qkv.dtype),
        mlp_hidden_(chunks_, rows_, max_inputs(&Block::mlp_proj), model.blocks[0].qkv.dtype) {
    for (int64_t thread = 0; thread < call.num_threads; thread++) {
      block_inputs_.emplace_back(chunks_, rows_, model.width, model.blocks[0].qkv.dtype);
      head_inputs_.emplace_back(chunks_, rows_, model.width, model.head.dtype);
    }
    for (int64_t b = 0; b < model.num_blocks; b++)
      qkv_stride_ = std::max(qkv_stride_, padded(model.blocks[b].qkv.outputs));
    qkv_.reset(new float[rows_ * qkv_stride_]);
  }

  void run() {
#pragma omp parallel num_threads(static_cast<int>(call_.num_threads)) if (call_.num_threads > 1)
    {
      embed();
      int64_t heads_before = 0;
      for (int64_t b = 0; b < model_.num_blocks; b++) {
        attention(model_.blocks[b], heads_before);
        mlp(model_.blocks[b]);
        heads_before += model_.blocks[b].num_heads;
      }
      if (call_.logits) logits();
    }
  }

 private:
  int64_t max_inputs(Linear Block::* of) const {
    int64_t inputs = 0;
    for (int64_t b = 0; b < model_.num_blocks; b++) inputs = std::max(inputs, (model_.blocks[b].*of).inputs);
    return inputs;
  }

  void embed() {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows_; row++) {
      const float* token = model_.token_embeddings + call_.tokens[row] * model_.width;
      const float* position = model_.position_embeddings + call_.positions[row] * model_.width;
      for (int64_t i = 0; i < model_.width; i++) residual_[row * stride_ + i] = token[i] + position[i];
    }
  }

  // Every thread normalises all rows for itself: that is faster than a barrier.
  PackedInputs& apply_norm(const float* weight, std::vector<PackedInputs>& thread_inputs) {
    PackedInputs& out = thread_inputs[omp_get_thread_num()];
    for (int64_t row = 0; row < rows_; row++) rms_norm(residual_.get() + row * stride_, weight, model_, row, out);
    return out;
  }

  void add_to_residual(const Linear& linear, const PackedInputs& x) {
    multiply(linear, chunks_, x, [&](int64_t row, int64_t output, const float* values) {
      float* to = residual_.get() + row * stride_ + output;
      for (int64_t o = 0; o < TILE; o += LANES) store(to + o, load(to + o) + load(values + o));
    });
  }

  void attention(const Block& block, int64_t heads_before) {
    const HeadsLayout layout{block.num_heads, heads_before, model_.head_width, block.attention_scale};
    multiply(block.qkv, chunks_, apply_norm(block.norm_1, block_inputs_),
             [&](int64_t row, int64_t output, const float* values) {
               std::copy(values, values + TILE, qkv_.get() + row * qkv_stride_ + output);
             });
    float* scores = scores_.get() + omp_get_thread_num() * MAX_QUERIES_PER_PASS * score_capacity_;
    attend_batch(batch_, layout, qkv_.get(), qkv_stride_, scores, score_capacity_, attention_outputs_);
    add_to_residual(block.attention_proj, attention_outputs_);
  }

  void mlp(const Block& block) {
    multiply(block.mlp_fc, chunks_, apply_norm(block.norm_2, block_inputs_),
             [&](int64_t row, int64_t output, const float* values) {
               float hidden[TILE];
               for (int64_t o = 0; o < TILE; o += LANES) store(hidden + o, quick_gelu(load(values + o)));
               mlp_hidden_.write(row, output, hidden, std::min(TILE, block.mlp_fc.outputs - output));
             });
    add_to_residual(block.mlp_proj, mlp_hidden_);
  }

  void logits() {
    const int64_t colors = model_.head.outputs;
    multiply(model_.head, chunks_, apply_norm(model_.final_norm, head_inputs_),
             [&](int64_t row, int64_t output, const float* values) {
               std::copy(values, values + std::min(TILE, colors - output), call_.logits + row * colors + output);
             });
  }

  const Model& model_;
  const Call& call_;
  const int64_t rows_, stride_;
  const std::vector<RowChunk> chunks_;
  const BatchLayout batch_;
  const int64_t score_capacity_;
  int64_t qkv_stride_ = 0;
  std::unique_ptr<float[]> residual_, qkv_, scores_;
  std::vector<PackedInputs> block_inputs_, head_inputs_;  // by thread
  PackedInputs attention_outputs_, mlp_hidden_;
};

bool is_valid(const Model& model, const Call& call) {
  for (int64_t row = 0; row < call.images * call.queries; row++) {
    const Cache& cache = call.caches[row / call.queries];
    const int64_t position = call.positions[row] - cache.prefix_length;
    if (call.tokens[row] < 0 || call.tokens[row] >= model.num_tokens) return false;
    if (position < 0 || position >= cache.capacity || call.positions[row] >= model.num_positions) return false;
  }
  return true;
}

}  // namespace

// Compute logits, and write keys and values to the caches. Returns 0; 1 if there is not enough memory; 2 if a token or
// position is outside the model or the caches.
extern "C" int imagegpt_step(const Model* model, const Call* call) {
  if (!is_valid(*model, *call)) return 2;
  try {
    Step(*model, *call).run();
    return 0;
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error from a vector
    return 1;
  }
}

extern "C" void imagegpt_redraft(const float* scores, const int64_t* tokens, const int64_t* positions,
                                 const float* bigrams, int64_t images, int64_t queries, int64_t colors,
                                 int64_t* pixels) {
  redraft(scores, tokens, positions, bigrams, images, queries, colors, pixels);
}

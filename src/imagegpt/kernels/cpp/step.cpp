// One step of a model in one call: the blocks, the last norm and the head, for some images at some positions.
//
// Compiled for the precision of weights and cache, PRECISION (0 float32, 1 bfloat16, 2 int8), and for a HEAD_WIDTH, a
// multiple of 16. Plain C structures go in, which `kernels/step.py` mirrors: nothing here knows of torch.

#include <cmath>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cached_attention.h"
#include "drafts.h"
#include "linear.h"
#include "vectors.h"

namespace {

struct Block {
  const float *norm_1, *norm_2;  // gains, padded with zeros to whole vectors
  Linear qkv, attention_out, widen, narrow;
  int64_t heads;
  float score_factor;
};

struct Model {
  int64_t width, head_width, num_blocks, num_tokens, num_positions;
  double norm_eps;
  const float *token_embeddings, *position_embeddings;  // (tokens, width), (positions, width)
  const Block* blocks;
  const float* last_norm;
  Linear head;
};

struct Call {
  const int64_t *tokens, *positions;  // (images, queries)
  const Cache* caches;                // of the images
  int64_t images, queries;
  float* logits;  // (images, queries, colours), or null if nobody asks
  int64_t num_threads;
};

constexpr int64_t MOST_QUERIES = 4;  // that are answered together

int64_t padded(int64_t count) { return (count + TILE - 1) / TILE * TILE; }

int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// x * rsqrt(mean(x^2) + eps) * gains, in order, packed for the product that follows.
void norm(const float* x, const float* gains, const Model& model, int64_t row, Packed& out) {
  Floats squares{};
  for (int64_t i = 0; i < model.width; i += LANES) squares += load(x + i) * load(x + i);
  const double mean = static_cast<double>(sum(squares)) / static_cast<double>(model.width);
  const float scale = static_cast<float>(1 / std::sqrt(mean + model.norm_eps));
  for (int64_t i = 0; i < model.width; i += LANES) {
    float values[LANES];
    store(values, load(x + i) * scale * load(gains + i));
    out.put(row, i, values, std::min(LANES, model.width - i));
  }
}

// What a call computes with. The stream is (rows, stride), with zeros behind the width.
class Step {
 public:
  Step(const Model& model, const Call& call)
      : model_(model),
        call_(call),
        rows_(call.images * call.queries),
        stride_(padded(model.width)),
        chunks_(chunks_of(rows_)),
        batch_(call.caches, call.positions, call.images, call.queries),
        room_(batch_.room()),
        stream_(new float[rows_ * stride_]()),
        scores_(new float[call.num_threads * MOST_QUERIES * room_]),
        mixed_(chunks_, rows_, widest(&Block::attention_out), model.blocks[0].qkv.kind),
        widened_(chunks_, rows_, widest(&Block::narrow), model.blocks[0].qkv.kind) {
    for (int64_t thread = 0; thread < call.num_threads; thread++) {
      normed_.emplace_back(chunks_, rows_, model.width, model.blocks[0].qkv.kind);
      last_normed_.emplace_back(chunks_, rows_, model.width, model.head.kind);
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
        heads_before += model_.blocks[b].heads;
      }
      if (call_.logits) logits();
    }
  }

 private:
  int64_t widest(Linear Block::*of) const {
    int64_t inputs = 0;
    for (int64_t b = 0; b < model_.num_blocks; b++) inputs = std::max(inputs, (model_.blocks[b].*of).inputs);
    return inputs;
  }

  void embed() {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows_; row++) {
      const float* token = model_.token_embeddings + call_.tokens[row] * model_.width;
      const float* position = model_.position_embeddings + call_.positions[row] * model_.width;
      for (int64_t i = 0; i < model_.width; i++) stream_[row * stride_ + i] = token[i] + position[i];
    }
  }

  // Each thread norms all rows for itself: that takes less than waiting for the others.
  Packed& normed(const float* gains, std::vector<Packed>& of_threads) {
    Packed& out = of_threads[thread_index()];
    for (int64_t row = 0; row < rows_; row++) norm(stream_.get() + row * stride_, gains, model_, row, out);
    return out;
  }

  void add_to_stream(const Linear& linear, const Packed& x) {
    multiply(linear, chunks_, x, [&](int64_t row, int64_t output, const float* values) {
      float* to = stream_.get() + row * stride_ + output;
      for (int64_t o = 0; o < TILE; o += LANES) store(to + o, load(to + o) + load(values + o));
    });
  }

  void attention(const Block& block, int64_t heads_before) {
    const Heads heads{block.heads, heads_before, model_.head_width, block.score_factor};
    multiply(block.qkv, chunks_, normed(block.norm_1, normed_), [&](int64_t row, int64_t output, const float* values) {
      std::copy(values, values + TILE, qkv_.get() + row * qkv_stride_ + output);
    });
    float* scores = scores_.get() + thread_index() * MOST_QUERIES * room_;
    attend_all(batch_, heads, qkv_.get(), qkv_stride_, scores, room_, mixed_);
    add_to_stream(block.attention_out, mixed_);
  }

  void mlp(const Block& block) {
    multiply(block.widen, chunks_, normed(block.norm_2, normed_), [&](int64_t row, int64_t output, const float* values) {
      float widened[TILE];
      for (int64_t o = 0; o < TILE; o += LANES) store(widened + o, activated(load(values + o)));
      widened_.put(row, output, widened, std::min(TILE, block.widen.outputs - output));
    });
    add_to_stream(block.narrow, widened_);
  }

  void logits() {
    const int64_t colors = model_.head.outputs;
    multiply(model_.head, chunks_, normed(model_.last_norm, last_normed_), [&](int64_t row, int64_t output, const float* values) {
      std::copy(values, values + std::min(TILE, colors - output), call_.logits + row * colors + output);
    });
  }

  const Model& model_;
  const Call& call_;
  const int64_t rows_, stride_;
  const std::vector<Chunk> chunks_;
  const Batch batch_;
  const int64_t room_;
  int64_t qkv_stride_ = 0;
  std::unique_ptr<float[]> stream_, qkv_, scores_;
  std::vector<Packed> normed_, last_normed_;  // of each thread
  Packed mixed_, widened_;
};

bool is_inside(const Model& model, const Call& call) {
  for (int64_t row = 0; row < call.images * call.queries; row++) {
    const Cache& cache = call.caches[row / call.queries];
    const int64_t slot = call.positions[row] - cache.prefix_length;
    if (call.tokens[row] < 0 || call.tokens[row] >= model.num_tokens) return false;
    if (slot < 0 || slot >= cache.room || call.positions[row] >= model.num_positions) return false;
  }
  return true;
}

}  // namespace

// Compute the logits of a call, and write keys and values into the caches. Returns 0; 1 if there is no memory; 2 if a
// token or position is none of the model's or of the caches'.
extern "C" int imagegpt_step(const Model* model, const Call* call) {
  if (!is_inside(*model, *call)) return 2;
  try {
    Step(*model, *call).run();
    return 0;
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector
    return 1;
  }
}

extern "C" void imagegpt_redraw(const float* scores, const int64_t* fed, const int64_t* positions, const float* influence,
                                int64_t images, int64_t queries, int64_t colors, int64_t* drawn) {
  redraw(scores, fed, positions, influence, images, queries, colors, drawn);
}

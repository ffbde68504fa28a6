/* Trained models without Python and PyTorch: the C interface.
 *
 *     symrnn_model *model;
 *     symrnn_session *session;
 *     if (symrnn_model_open("model.symrnn", &model)) puts(symrnn_why());
 *     symrnn_session_open(model, 1, 1, &session);
 *     symrnn_run_tokens(session, 1, &token, 1, logits);
 *
 * A model is a file that `symrnn.save_runtime` or `python -m lm.export --to runtime` wrote, mapped
 * into memory read-only: processes share its pages, and what is not used is not read.
 * docs/format.md has its layout. A model takes tokens or vectors, and gives logits, or whatever its
 * linear end gives, or the hidden state of its highest layer. A session is a batch of sequences on
 * their way through a model.
 *
 * A model never changes, so any number of threads and sessions may use it at once. A session is for
 * one thread at a time. Both work in children made by fork. The file must not be written to while
 * it is open; replace it instead.
 *
 * Letters: T time steps, B batch size, I input size, H hidden size, L layers, V tokens that a model
 * knows, O outputs. Arrays are dense, row-major, float unless it is said otherwise; the caller
 * allocates them.
 *
 * Every function that returns an int returns SYMRNN_OK or another status of symrnn.h, of which
 * `symrnn_why` then has a sentence. What is wrong in an argument or in a file is found before
 * anything changes.
 */
#ifndef SYMRNN_RUNTIME_H
#define SYMRNN_RUNTIME_H

#include <stdint.h>

#include "symrnn.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

typedef struct symrnn_model symrnn_model;
typedef struct symrnn_session symrnn_session;

/* The calling thread's last failure in this interface, as a sentence; "" if there was none. */
const char *symrnn_why(void);

/* ---- models ---------------------------------------------------------------------------------- */

/* How text becomes tokens. */
enum symrnn_vocabulary {
    SYMRNN_NO_TEXT = 0, /* the file has no vocabulary */
    SYMRNN_WORDS = 1,   /* each word between white space is a token */
    SYMRNN_TOKENS = 2,  /* tokens that a function of Python's made: text can be written, not read */
    SYMRNN_PIECES = 3   /* of sentencepiece: text can be written; sentencepiece itself reads it, by
                           the model that `symrnn_model_pieces` gives */
};

typedef struct symrnn_about {
    int32_t mode;         /* enum symrnn_mode */
    int32_t dtype;        /* of the packed matrices: SYMRNN_FLOAT, SYMRNN_BFLOAT16 or SYMRNN_INT8 */
    int32_t layers;       /* L */
    int32_t input_size;   /* I, of the lowest layer */
    int32_t hidden_size;  /* H */
    int32_t output_size;  /* O: the rows of the linear end, or H */
    int32_t tokens;       /* V of a model that takes tokens; 0 of one that takes vectors */
    int32_t vocabulary;   /* enum symrnn_vocabulary */
    int32_t eos, unknown; /* tokens: the end of a line, and what is not known; -1 for none */
    int64_t bytes;        /* of the file */
} symrnn_about;

/* Opens a file: SYMRNN_FILE if it cannot be read or is none of these, SYMRNN_MEMORY. `model` is
 * null then. */
int symrnn_model_open(const char *path, symrnn_model **model);

/* After its sessions. Null is allowed. */
void symrnn_model_close(symrnn_model *model);

int symrnn_model_about(const symrnn_model *model, symrnn_about *about);

/* JSON of whoever made the file: what was trained, on what, how good it is. Never null; as long as
 * the model is open. */
const char *symrnn_model_json(const symrnn_model *model);

/* The model of sentencepiece; null and 0 bytes where there is none. */
int symrnn_model_pieces(const symrnn_model *model, const void **pieces, int64_t *bytes);

/* ---- sessions -------------------------------------------------------------------------------- */

/* A batch of B ≥ 1 sequences at their beginning, where the state is zeros.
 * threads: at most so many run a step, the caller included; one where the work is too little. Their
 *     number decides how sums are split, and so the last bits of a result. */
int symrnn_session_open(const symrnn_model *model, int64_t batch, int threads,
                        symrnn_session **session);

/* Another session of the same model in the same state. */
int symrnn_session_copy(const symrnn_session *session, symrnn_session **copy);

/* Null is allowed. */
void symrnn_session_close(symrnn_session *session);

/* Sets the state of one sequence of the batch to zeros, or of all if `row` is -1. */
int symrnn_session_reset(symrnn_session *session, int64_t row);

/* The state, copied out or in. h, c: (L, B, H); c is for an LSTM only, else null. */
int symrnn_session_state(const symrnn_session *session, float *h, float *c);
int symrnn_session_set_state(symrnn_session *session, const float *h, const float *c);

/* The next T ≥ 1 steps of a model that takes tokens, or of one that takes vectors.
 * tokens: int32 (T, B), each from 0 to V - 1.  x: (T, B, I).
 * wanted: K, 0 to T: of how many of the last steps the output is computed.
 * output: (K, B, O); null if K = 0.
 * After SYMRNN_MEMORY the state is that of some of the steps. */
int symrnn_run_tokens(symrnn_session *session, int64_t steps, const int32_t *tokens, int64_t wanted,
                      float *output);
int symrnn_run_vectors(symrnn_session *session, int64_t steps, const float *x, int64_t wanted,
                       float *output);

/* ---- drawing tokens -------------------------------------------------------------------------- */

/* The generator of torch.manual_seed (mt19937). */
typedef struct symrnn_generator {
    uint32_t state[624];
    int32_t next;
} symrnn_generator;

void symrnn_seed(symrnn_generator *generator, uint32_t seed);

/* The next number from 0 up to below 1, of 53 bits: what torch.rand gives in float64. */
double symrnn_uniform(symrnn_generator *generator);

/* One token, drawn from softmax(logits / temperature) cut down to its likeliest tokens.
 * logits: (n), n ≥ 1; -inf for a token that is never drawn. SYMRNN_LOGITS if there is no softmax.
 * generator: exactly one number is drawn from it; none at temperature 0, where it may be null.
 * temperature: 0 takes the likeliest token, the least of those if several are.
 * top_k: only so many of the likeliest; 0 for all.
 * top_p: above 0: only the fewest whose probabilities sum to at least this share, of what top_k
 *     left; 1 for all. Of equally likely tokens the least are taken. */
int symrnn_draw(int64_t n, const float *logits, symrnn_generator *generator, double temperature,
                int64_t top_k, double top_p, int32_t *token);

/* ---- text ------------------------------------------------------------------------------------ */

/* Tokens of UTF-8 text, of SYMRNN_WORDS: the words between white space, eos for each "\n",
 * `unknown` for what the vocabulary lacks. SYMRNN_TEXT for text that is not UTF-8, that has "<eos>"
 * in it or a NUL, or an unknown word where none stands for it.
 * tokens: int32 (room), of which so many as there are, or as fit, are written.
 * count: how many there are. */
int symrnn_encode(const symrnn_model *model, const char *text, int64_t bytes, int32_t *tokens,
                  int64_t room, int64_t *count);

/* The next token as UTF-8 text: words with one space between, "\n" for eos.
 * line: what is on the line so far; 0 at first, then what the last call left there.
 * text: (room) bytes, of which so many as there are, or as fit, are written; not terminated.
 * count: how many there are. */
int symrnn_write(const symrnn_model *model, int32_t token, int32_t *line, char *text, int64_t room,
                 int64_t *count);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif

/* Text from a trained language model, token by token: what `python -m lm.generate` prints, in C.
 *
 *     python -m lm.export RUN --to runtime --out model.symrnn
 *     ./generate model.symrnn --prompt "the company said" --tokens 200 --seed 7 --top-p 0.9
 *
 * docs/runtime.md says how it is compiled.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <symrnn_runtime.h>

struct options {
    const char *model, *prompt;
    long tokens, seed, top_k, threads;
    double temperature, top_p;
};

static void check(int status) {
    if (status == SYMRNN_OK) return;
    fprintf(stderr, "error: %s\n", symrnn_why());
    exit(2);
}

static void usage(void) {
    fprintf(stderr,
            "usage: generate MODEL [--prompt TEXT] [--tokens N] [--seed N] [--temperature T]\n"
            "                [--top-k K] [--top-p P] [--threads N]\n");
    exit(2);
}

static struct options read_options(int count, char **words) {
    struct options o = {NULL, "", 200, 1, 0, 1, 1.0, 1.0};
    for (int i = 1; i < count; i++) {
        if (words[i][0] != '-') {
            if (o.model) usage();
            o.model = words[i];
            continue;
        }
        if (i + 1 == count) usage();
        const char *name = words[i], *value = words[++i];
        char *end = NULL;
        if (!strcmp(name, "--prompt")) o.prompt = value;
        else if (!strcmp(name, "--tokens")) o.tokens = strtol(value, &end, 10);
        else if (!strcmp(name, "--seed")) o.seed = strtol(value, &end, 10);
        else if (!strcmp(name, "--temperature")) o.temperature = strtod(value, &end);
        else if (!strcmp(name, "--top-k")) o.top_k = strtol(value, &end, 10);
        else if (!strcmp(name, "--top-p")) o.top_p = strtod(value, &end);
        else if (!strcmp(name, "--threads")) o.threads = strtol(value, &end, 10);
        else usage();
        if (end && (end == value || *end)) {
            fprintf(stderr, "error: %s should be a number, got: %s\n", name, value);
            exit(2);
        }
    }
    if (!o.model) usage();
    if (o.seed < 0 || o.seed > 0xffffffffL) {
        fprintf(stderr, "error: --seed should be from 0 to 2^32 - 1, got: %ld\n", o.seed);
        exit(2);
    }
    return o;
}

/* Prints a token; longer ones than the buffer are cut. `line` is what stands on the line so far. */
static void show(const symrnn_model *model, int32_t token, int32_t *line) {
    char text[1024];
    int64_t count;
    check(symrnn_write(model, token, line, text, sizeof text, &count));
    fwrite(text, 1, count < (int64_t)sizeof text ? (size_t)count : sizeof text, stdout);
    fflush(stdout);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(int count, char **words) {
    struct options o = read_options(count, words);
    symrnn_model *model;
    symrnn_session *session;
    symrnn_about about;
    symrnn_generator generator;
    check(symrnn_model_open(o.model, &model));
    check(symrnn_model_about(model, &about));
    if (about.tokens == 0 || about.tokens != about.output_size || about.eos < 0) {
        fprintf(stderr, "error: %s: is no language model with a vocabulary\n", o.model);
        return 2;
    }
    check(symrnn_session_open(model, 1, (int)o.threads, &session));
    symrnn_seed(&generator, (uint32_t)o.seed);

    /* The prompt begins a line, after the end of another. It has no more tokens than bytes. */
    int64_t bytes = (int64_t)strlen(o.prompt), steps = 0;
    int32_t *tokens = malloc((size_t)(bytes + 1) * sizeof *tokens), line = 0;
    float *logits = malloc((size_t)about.output_size * sizeof *logits);
    if (!tokens || !logits) {
        fprintf(stderr, "error: out of memory\n");
        return 2;
    }
    tokens[0] = about.eos;
    if (bytes > 0) check(symrnn_encode(model, o.prompt, bytes, tokens + 1, bytes, &steps));
    for (int64_t i = 1; i <= steps; i++) show(model, tokens[i], &line);
    steps++;

    double started = seconds();
    for (long n = 0; n < o.tokens; n++) {
        check(symrnn_run_tokens(session, steps, tokens, 1, logits));
        check(symrnn_draw(about.output_size, logits, &generator, o.temperature, o.top_k, o.top_p,
                          tokens));
        show(model, tokens[0], &line);
        steps = 1;
    }
    if (line) putchar('\n');
    fprintf(stderr, "%ld tokens, %.0f tokens per second\n", o.tokens,
            o.tokens / (seconds() - started));
    free(tokens);
    free(logits);
    symrnn_session_close(session);
    symrnn_model_close(model);
    return 0;
}

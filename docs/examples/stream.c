/* Runs recurrent layers over a stream of vectors: each that comes in is one step, and goes out as
 * soon as it has come. Vectors are float32, one after another, without a header.
 *
 *     symrnn.save_runtime(SymLSTM(32, 64), "layer.symrnn")            (in Python)
 *     ./stream layer.symrnn < inputs.f32 > outputs.f32
 *     ./stream layer.symrnn inputs.f32 > outputs.f32
 */
#include <stdio.h>
#include <stdlib.h>

#include <symrnn_runtime.h>

static void check(int status) {
    if (status == SYMRNN_OK) return;
    fprintf(stderr, "error: %s\n", symrnn_why());
    exit(2);
}

int main(int count, char **words) {
    if (count != 2 && count != 3) {
        fprintf(stderr, "usage: stream MODEL [FILE]\n");
        return 2;
    }
    FILE *file = count == 3 ? fopen(words[2], "rb") : stdin;
    if (!file) {
        perror(words[2]);
        return 2;
    }
    symrnn_model *model;
    symrnn_session *session;
    symrnn_about about;
    check(symrnn_model_open(words[1], &model));
    check(symrnn_model_about(model, &about));
    check(symrnn_session_open(model, 1, 1, &session));
    size_t inputs = (size_t)about.input_size, outputs = (size_t)about.output_size, read;
    float *x = malloc(inputs * sizeof *x), *y = malloc(outputs * sizeof *y);
    if (!x || !y) {
        fprintf(stderr, "error: out of memory\n");
        return 2;
    }
    while ((read = fread(x, sizeof *x, inputs, file)) == inputs) {
        check(symrnn_run_vectors(session, 1, x, 1, y));
        if (fwrite(y, sizeof *y, outputs, stdout) != outputs || fflush(stdout)) {
            perror("stdout");
            return 2;
        }
    }
    if (read > 0) {
        fprintf(stderr, "error: the stream ended after %zu of the %zu numbers of a vector\n", read,
                inputs);
        return 2;
    }
    free(x);
    free(y);
    symrnn_session_close(session);
    symrnn_model_close(model);
    return 0;
}

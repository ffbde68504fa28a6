// Runs a language model from a package of AOTInductor, without Python: the likeliest tokens.
//
//     package LIBRARY PACKAGE LAYERS HIDDEN_SIZE TOKEN COUNT
//
// LIBRARY: the operators of packed layers, whose path `python -m symrnn.native.torch` prints.
// PACKAGE: `python -m lm.export --to aoti` wrote it: an LSTM of so many layers and units.
// Prints COUNT lines, each the token that follows and its logit.

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int count, char **arguments) {
    if (count != 7) {
        std::fprintf(stderr, "usage: package LIBRARY PACKAGE LAYERS HIDDEN_SIZE TOKEN COUNT\n");
        return 2;
    }
    // Before the package, which asks for the operators.
    if (!dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL)) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    try {
        torch::inductor::AOTIModelPackageLoader model(arguments[2]);
        const long layers = std::atol(arguments[3]), hidden = std::atol(arguments[4]);
        at::Tensor h = at::zeros({layers, 1, hidden}), c = h.clone();
        at::Tensor token = at::full({1, 1}, std::atol(arguments[5]), at::kLong);
        for (long n = std::atol(arguments[6]); n > 0; --n) {
            const std::vector<at::Tensor> found = model.run({token, h, c});
            const auto [logit, id] = found[0][0][0].max(0);
            std::printf("%ld %.9g\n", id.item<long>(), logit.item<float>());
            token = id.view({1, 1});
            h = found[1];
            c = found[2];
        }
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}

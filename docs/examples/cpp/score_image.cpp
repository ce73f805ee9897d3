// Copyright (C) 2026 anomalib-fewshot contributors
// SPDX-License-Identifier: Apache-2.0

// Score images with an exported model in OpenVINO. Export it with `--onnx_kwargs.verdict true`.
//
// Usage: score_image model.onnx IMAGE.ppm...
//
// The images are binary PPM files, 8 bits RGB, so that the example needs no image library. With a camera, pass its pixels
// to `to_tensor` instead.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    size_t width = 0, height = 0;
    std::vector<uint8_t> pixels;  // height x width x RGB
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    size_t maximum = 0;
    Image image;
    file >> magic >> image.width >> image.height >> maximum;
    if (!file || magic != "P6" || maximum != 255 || image.width == 0 || image.height == 0) {
        throw std::runtime_error("The image is not a binary PPM file with 8 bits per channel: " + path);
    }
    file.get();  // one whitespace character
    image.pixels.resize(3 * image.width * image.height);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size())) {
        throw std::runtime_error("The image is truncated: " + path);
    }
    return image;
}

// Return RGB between 0 and 1, shape (1, 3, H, W). Do not resize: the graph does.
ov::Tensor to_tensor(const Image& image) {
    ov::Tensor tensor(ov::element::f32, {1, 3, image.height, image.width});
    float* values = tensor.data<float>();
    const size_t area = image.height * image.width;
    for (size_t pixel = 0; pixel < area; ++pixel) {
        for (size_t channel = 0; channel < 3; ++channel) {
            values[channel * area + pixel] = image.pixels[3 * pixel + channel] / 255.0f;
        }
    }
    return tensor;
}

int main(int argc, char** argv) try {
    if (argc < 3) {
        throw std::runtime_error("Usage: score_image model.onnx IMAGE.ppm...");
    }
    const char* verdicts[] = {"good", "review", "defect"};
    ov::Core core;
    // Without this hint, OpenVINO computes in bf16 on CPUs that support it, which may change verdicts.
    const auto accuracy = ov::hint::execution_mode(ov::hint::ExecutionMode::ACCURACY);
    auto request = core.compile_model(argv[1], "CPU", accuracy).create_infer_request();
    for (int index = 2; index < argc; ++index) {
        request.set_input_tensor(to_tensor(read_ppm(argv[index])));
        request.infer();
        const float score = request.get_tensor("pred_score").data<float>()[0];
        const int64_t verdict = request.get_tensor("verdict").data<int64_t>()[0];
        std::printf("%s\t%.6f\t%s\n", argv[index], score, std::isnan(score) ? "unknown" : verdicts[verdict]);
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}

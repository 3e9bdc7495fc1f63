// What this processor can do at most: integer products of bytes and reads of memory.
//
// c++ -O3 -march=native -fopenmp benchmarks/kernels/cpu_limits.cpp -o /tmp/cpu_limits
// OMP_NUM_THREADS=2 OMP_PROC_BIND=true /tmp/cpu_limits
// Prints lines of "name value": GMAC/s of vpdpbusd, vdpbf16ps and vpmaddubsw + vpaddw out of registers,
// GFMA/s of float32, and GB/s of reading again and again what all threads share out, in
// huge pages.
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kHugePage = 2 << 20;
constexpr int kChains = 12;  // independent sums, to hide an instruction's latency
constexpr int kRounds = 120'000'000;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename Vec, typename Step>
double billions(double each, Vec start, Step step) {
  double best = 1e9;
  for (int attempt = 0; attempt < 3; attempt++) {
    auto began = Clock::now();
#pragma omp parallel
    {
      Vec sums[kChains];
#pragma GCC unroll 16
      for (int c = 0; c < kChains; c++) sums[c] = start;
      for (int i = 0; i < kRounds / kChains; i++)
#pragma GCC unroll 16
        for (int c = 0; c < kChains; c++) {
          sums[c] = step(sums[c]);
          asm volatile("" : "+v"(sums[c]));
        }
    }
    best = std::min(best, seconds_since(began));
  }
  return each * kRounds * omp_get_max_threads() / best / 1e9;
}

double read_speed(size_t bytes) {
  const size_t count = bytes / sizeof(__m256i) / 8 * 8;
  auto* memory = static_cast<__m256i*>(std::aligned_alloc(kHugePage, bytes));
  madvise(memory, bytes, MADV_HUGEPAGE);
#pragma omp parallel for
  for (size_t i = 0; i < count; i++) memory[i] = _mm256_set1_epi32(int(i));
  const int passes = int(std::max<size_t>(1, (size_t{1} << 30) / bytes));
  double best = 1e9;
  for (int attempt = 0; attempt < 4; attempt++) {
    auto began = Clock::now();
#pragma omp parallel
    for (int pass = 0; pass < passes; pass++) {
      __m256i sums[8] = {};
#pragma omp for schedule(static) nowait
      for (size_t i = 0; i < count; i += 8)
        for (int j = 0; j < 8; j++) sums[j] = _mm256_xor_si256(sums[j], memory[i + j]);
      for (__m256i& s : sums) asm volatile("" : "+x"(s));
    }
    best = std::min(best, seconds_since(began) / passes);
  }
  std::free(memory);
  return double(bytes) / best / 1e9;
}

}  // namespace

int main() {
  std::printf("threads %d\n", omp_get_max_threads());
#if defined(__AVX512VNNI__)
  const __m512i wide = _mm512_set1_epi8(1);
  std::printf("vnni_gmac %.0f\n", billions(64, wide, [wide](__m512i s) {
                return _mm512_dpbusd_epi32(s, wide, wide);
              }));
#endif
#if defined(__AVX512BF16__)
  const __m512bh halves = __m512bh(_mm512_set1_epi16(0x3f80));
  std::printf("bf16_gmac %.0f\n", billions(32, _mm512_setzero_ps(), [halves](__m512 s) {
                return _mm512_dpbf16_ps(s, halves, halves);
              }));
#endif
  const __m256i bytes = _mm256_set1_epi8(1);
  std::printf("maddubs_gmac %.0f\n", billions(32, bytes, [bytes](__m256i s) {
                return _mm256_add_epi16(s, _mm256_maddubs_epi16(bytes, s));
              }));
  const __m256 ones = _mm256_set1_ps(1);
  std::printf("float_gfma %.0f\n", billions(8, ones, [ones](__m256 s) {
                return _mm256_fmadd_ps(s, ones, ones);
              }));
  for (int megabytes : {2, 16, 64, 256})
    std::printf("read_%dmb_gbs %.1f\n", megabytes, read_speed(size_t(megabytes) << 20));
}

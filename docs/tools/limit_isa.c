/* Hides instruction sets of the CPU from a program and all that it starts, at full speed.
 *
 *     gcc -O2 -shared -fPIC -o limit_isa.so limit_isa.c
 *     LIMIT_ISA=avx2 LD_PRELOAD=$PWD/limit_isa.so python ...
 *
 * Linux on x86-64 can make the CPUID instruction fault (flag cpuid_fault in /proc/cpuinfo). The handler executes it,
 * clears the bits of what is hidden, and goes on behind it. Libraries that ask CPUID then choose their kernels as on a
 * CPU without these instructions. /proc/cpuinfo still lists them.
 *
 * LIMIT_ISA: no-amx, no-vnni (AVX512 as in Skylake-X), avx-vnni (no AVX512, but AVX-VNNI), avx2, sse42.
 * A program must not handle SIGSEGV itself: run pytest with -p no:faulthandler.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* CPUID leaf 1 */
#define C1_AVX (BIT(12) | BIT(28) | BIT(29)) /* FMA, AVX, F16C */
/* CPUID leaf 7, subleaf 0 */
#define B7_AVX2 BIT(5)
#define B7_AVX512 (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define B7_IFMA BIT(21)
#define C7_AVX512 (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)) /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
#define C7_VECTOR_AES (BIT(9) | BIT(10))
#define D7_AVX512 (BIT(2) | BIT(3) | BIT(8) | BIT(23)) /* 4VNNIW, 4FMAPS, VP2INTERSECT, FP16 */
#define D7_AMX (BIT(22) | BIT(24) | BIT(25))
/* CPUID leaf 7, subleaf 1 */
#define A71_AVX_VNNI BIT(4)
#define A71_AVX512_BF16 BIT(5)
#define A71_AMX_FP16 BIT(21)
#define A71_AVX_IFMA BIT(23)
#define D71_AVX (BIT(4) | BIT(5) | BIT(10)) /* VNNI-INT8, NE-CONVERT, VNNI-INT16 */
#define D71_AMX_COMPLEX BIT(8)
#define D71_AVX10 BIT(19)

enum level { NO_AMX, NO_VNNI, AVX_VNNI, AVX2, SSE42, LEVELS };
static const char *const names[LEVELS] = {"no-amx", "no-vnni", "avx-vnni", "avx2", "sse42"};
static enum level level;

static void let_cpuid_run(int on) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void hide(uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
    if (leaf == 1 && level >= SSE42)
        *c &= ~C1_AVX;
    if (leaf == 7 && subleaf == 0) {
        *d &= ~D7_AMX;
        if (level >= NO_VNNI) {
            *b &= ~B7_IFMA;
            *c &= ~C7_AVX512;
            *d &= ~D7_AVX512;
        }
        if (level >= AVX_VNNI)
            *b &= ~B7_AVX512;
        if (level >= SSE42) {
            *b &= ~B7_AVX2;
            *c &= ~C7_VECTOR_AES;
        }
    }
    if (leaf == 7 && subleaf == 1) {
        *a &= ~A71_AMX_FP16;
        *d &= ~(D71_AMX_COMPLEX | D71_AVX10);
        if (level >= NO_VNNI)
            *a &= ~A71_AVX512_BF16;
        if (level >= NO_VNNI && level != AVX_VNNI) {
            *a &= ~(A71_AVX_VNNI | A71_AVX_IFMA);
            *d &= ~D71_AVX;
        }
    }
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    (void)signal_number;
    if (info->si_code != SI_KERNEL || instruction[0] != 0x0f || instruction[1] != 0xa2) {
        signal(SIGSEGV, SIG_DFL); /* a fault of the program: it happens again, and ends it */
        return;
    }
    let_cpuid_run(1);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    let_cpuid_run(0);
    hide(leaf, subleaf, &a, &b, &c, &d);
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    const char *wanted = getenv("LIMIT_ISA");
    struct sigaction action = {0};
    if (!wanted)
        return;
    for (level = NO_AMX; level < LEVELS && strcmp(wanted, names[level]); level++)
        ;
    if (level == LEVELS) {
        fprintf(stderr, "LIMIT_ISA=%s: choose no-amx, no-vnni, avx-vnni, avx2 or sse42\n", wanted);
        _exit(2);
    }
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        perror("limit_isa: CPUID cannot fault on this CPU");
        _exit(2);
    }
}

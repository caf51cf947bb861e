"""The threads of decoding.c: every chunk of a job runs once, the result is the same for any number of threads, and no call waits for a
thread that does not run. The pool is also tested without the rest of decoding.c, with C code that can see when its chunks run."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import pytest
import torch
from test_decoding import logits_of, needs_compiler
from tiny_models import tiny_model, token_ids
from torch import nn

from gpt_scratch.inference import decoding_library, streamed_linear
from gpt_scratch.inference.decoding import prepare_for_decoding
from gpt_scratch.inference.streamed_linear import WEIGHTS, StreamedLinear

pytestmark = [needs_compiler, pytest.mark.skipif(not hasattr(os, "fork"), reason="decoding.c needs Linux or macOS")]

# Functions for tests, after the pool. `meet` fails only if its two chunks never run at the same time, on two threads.
EXTRA = """
#include <stdlib.h>
typedef struct { int64_t chunks; atomic_int runs[17], wrong; } Count;

static void count(const void *job, int64_t chunk, int thread) {
    Count *c = (Count *)job;
    pause_sometimes();
    if (chunk >= c->chunks || thread >= MAX_THREADS) c->wrong = 1;
    else c->runs[chunk]++;
}

/* Number of jobs of which a chunk did not run exactly once. */
int count_jobs(int jobs, int threads) {
    int bad = 0;
    Count *counts = calloc(jobs, sizeof(Count)); /* each in its own place, where a late chunk would be missed */
    for (int i = 0; i < jobs; i++) {
        Count *c = counts + i;
        c->chunks = i % 17;
        parallel(count, c, c->chunks, 1 + i % threads);
        int wrong = c->wrong;
        for (int chunk = 0; chunk < 17; chunk++) wrong |= c->runs[chunk] != (chunk < c->chunks);
        bad += wrong;
    }
    free(counts);
    return bad;
}

typedef struct { atomic_int begun, threads; int seconds; } Meeting;

static void wait_for_another(const void *job, int64_t chunk, int thread) {
    Meeting *m = (Meeting *)job;
    (void)chunk;
    atomic_fetch_or(&m->threads, 1 << thread);
    m->begun++;
    for (int i = 0; i < 1000 * m->seconds && m->begun < 2; i++) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

int meet(int seconds) {
    Meeting m = {.seconds = seconds};
    parallel(wait_for_another, &m, 2, 2);
    return m.threads == 3;
}

void hold_workers(void) { pthread_mutex_lock(&pool.mutex); } /* those asleep cannot wake up */
void release_workers(void) { pthread_mutex_unlock(&pool.mutex); }
int asleep(int thread) { return pool.asleep[thread]; }
"""
# Before a chunk is claimed, run or finished, a thread sometimes pauses, as if it were descheduled there.
PAUSES = """
static void pause_sometimes(void) {
    static _Thread_local int calls;
    if (++calls % 7 == 0) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}
#undef atomic_fetch_sub
#define atomic_fetch_sub(counter, n) (pause_sometimes(), atomic_fetch_sub_explicit(counter, n, memory_order_seq_cst))
"""
# In place of pthread_create: the system refuses; or it has started a thread that has not run yet.
REFUSED = "#define pthread_create(...) 11\n"
NEVER_RUNS = "#define pthread_create(...) 0\n#define pthread_detach(thread) (void)(thread)\n"


def compiled_pool(path, before: str = ""):
    code = resources.files("gpt_scratch.inference").joinpath("decoding.c").read_text()
    head, rest = code.split("/* " + "-" * 121 + " threads */")
    includes = "".join(f"{line}\n" for line in head.splitlines() if line.startswith("#include"))
    pool = rest.split("/* " + "-" * 121 + " weights */")[0]
    command = [*decoding_library._compiler(), "-O1", "-pthread", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    decoding_library._call(command, "\n".join((includes, PAUSES, before, pool, EXTRA)).encode())
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pool") / "pool.so"


@pytest.fixture(scope="module")
def pool(path):
    return compiled_pool(path)


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads, for the duration of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def meets(pool) -> bool:
    """Whether a worker takes part. Waking one is a hint, so a single job may miss it."""
    return any(pool.meet(1) for _ in range(30))


def wait_until_asleep(pool, thread: int) -> None:
    for _ in range(3000):
        if pool.asleep(thread):
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"thread {thread} does not sleep")


def exit_status_of_child(function) -> int:
    """0 if `function()` is true in a fork of this process."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it: a child that waits for a thread which it does not have would wait forever
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("threads", [1, 2, 3, 70])
def test_every_chunk_runs_once(pool, threads):
    assert pool.count_jobs(500, threads) == 0


def test_workers_take_part_and_sleep_between_jobs(pool):
    assert meets(pool)
    wait_until_asleep(pool, 1)
    assert meets(pool)


@pytest.mark.parametrize("before", [REFUSED, NEVER_RUNS])
def test_a_thread_that_never_runs_is_not_waited_for(tmp_path, before):
    assert compiled_pool(tmp_path / "pool.so", before).count_jobs(100, 3) == 0


def test_a_thread_that_cannot_wake_up_is_not_waited_for(pool):
    assert meets(pool)
    wait_until_asleep(pool, 1)
    pool.hold_workers()
    try:
        assert pool.count_jobs(100, 2) == 0 and not pool.meet(0)
    finally:
        pool.release_workers()
    assert meets(pool)


def test_another_caller_runs_its_job_alone(pool):
    with ThreadPoolExecutor(3) as executor:
        assert list(executor.map(pool.count_jobs, [300] * 3, [3] * 3)) == [0, 0, 0]
    assert meets(pool)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_its_own_threads(pool):
    """Also if it was forked during a job of another thread, or while a worker had the mutex."""
    assert meets(pool) and exit_status_of_child(lambda: meets(pool)) == 0
    wait_until_asleep(pool, 1)
    pool.hold_workers()
    with ThreadPoolExecutor(1) as executor:
        job = executor.submit(pool.meet, 2)
        try:
            assert exit_status_of_child(lambda: meets(pool)) == 0
        finally:
            pool.release_workers()
        job.result()
    assert meets(pool)


def test_the_interpreter_ends_with_workers(pool, path):
    for last in (
        "while not pool.asleep(1): time.sleep(0.01)",
        "threading.Thread(target=pool.meet, args=(60,), daemon=True).start()",
    ):
        code = f"import ctypes, threading, time; pool = ctypes.CDLL({str(path)!r}); pool.count_jobs(20, 2)\n{last}"
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, timeout=50)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_results_are_the_same_bits_for_any_number_of_threads(weights, threads):
    fast, ids = prepare_for_decoding(tiny_model("llama", intermediate_size=320), weights), token_ids(3, 21)
    wide, rows = StreamedLinear(nn.Linear(96, 701), weights), torch.randn(5, 96)
    results = []
    for number in (1, 2, 3, os.cpu_count() + 2):
        threads(number)
        results.append([logits_of(fast, ids), *(wide(rows[:count]) for count in (1, 2, 5))])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_two_threads_decode_at_once(threads):
    threads(2)
    fast, ids = prepare_for_decoding(tiny_model("llama"), "int8"), [token_ids(1, 12 + i) for i in range(2)]
    expected = [logits_of(fast, each) for each in ids]

    def decode(i):
        return all(torch.equal(logits_of(fast, ids[i]), expected[i]) for _ in range(50))

    with ThreadPoolExecutor(2) as executor:
        assert all(executor.map(decode, range(2)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_decoding_in_a_forked_process_and_beside_a_busy_one(threads):
    threads(os.cpu_count() + 1)
    streamed, x = StreamedLinear(nn.Linear(64, 301), "int8"), torch.randn(2, 64)
    expected = streamed(x)
    assert exit_status_of_child(lambda: torch.equal(streamed(x), expected)) == 0
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        assert all(torch.equal(streamed(x), expected) for _ in range(20))
    finally:
        busy.kill()
        busy.wait()


def test_pytorch_has_one_thread_during_generation(threads):
    """Also if two threads of the program generate at once, and if generation fails; the number of decoding.c stays."""
    threads(3)
    model, seen = prepare_for_decoding(tiny_model("llama")), []

    def record(input_ids, scores):
        seen.append((torch.get_num_threads(), streamed_linear.threads_of_c()))
        both.wait()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def generate(ids):
        more = {"eos_token_id": None, "stopping_criteria": [record]}
        ids = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, **more)
        return ids, torch.get_num_threads()

    both = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(generate, [token_ids(1, 4)] * 2)
    assert torch.equal(first[0], second[0]) and first[1] == second[1] == 3 and seen == [(1, 3)] * 10
    assert (torch.get_num_threads(), streamed_linear.threads_of_c()) == (3, 3)
    with pytest.raises(ValueError, match="unknown"):
        model.generate(token_ids(1, 4), unknown=1)
    assert (torch.get_num_threads(), streamed_linear.threads_of_c()) == (3, 3)

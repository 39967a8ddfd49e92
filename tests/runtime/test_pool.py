from cut_pool import Cut

from onnxq.runtime.pool import IN_PROCESS


def twice(task, finished):
    for done in range(1, task + 1):
        finished(done)
    return 2 * task


def test_all_steps_are_one_chunk_even_if_their_number_is_unknown():
    assert IN_PROCESS.chunks(0) == IN_PROCESS.chunks(7) == [slice(None)]
    assert list(range(7))[IN_PROCESS.chunks(7)[0]] == list(range(7))


def test_tasks_run_in_order_and_their_steps_add_up():
    told = []
    assert list(IN_PROCESS.run(twice, [3, 0, 2], told.append)) == [(0, 6), (1, 0), (2, 4)]
    assert told == [1, 2, 3, 4, 5]


def test_a_task_runs_when_its_result_is_asked_for():
    told = []
    results = IN_PROCESS.run(twice, [1, 1], told.append)
    assert (next(results), told) == ((0, 2), [1])


def test_results_are_put_in_the_order_of_the_tasks():
    shuffled = Cut(seed=1)
    tasks = list(range(6))
    assert [number for number, _ in shuffled.run(twice, tasks, lambda _: None)] != tasks
    for pool in (IN_PROCESS, shuffled):
        assert pool.in_order(twice, tasks, lambda _: None) == [0, 2, 4, 6, 8, 10]

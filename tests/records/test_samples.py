"""samples/: a capped number of steps and prompts, evenly spaced."""

from forge.records import samples


def group(id):
    answer = {"text": "yes", "rewards": {"exact": float("nan")}, "reward": 1.0}
    return {"id": id, "prompt": {"a": "?"}, "label": "yes", "answers": [answer]}


def test_some_steps_and_prompts_are_kept(tmp_path):
    for step in range(1000):
        if samples.due(tmp_path, step, 1000):
            samples.write(tmp_path, step, [group(id) for id in range(20)])
    assert samples.steps(tmp_path) == list(range(0, 1000, 20))
    kept = samples.read(tmp_path, 40)
    assert [each["id"] for each in kept] == [0, 3, 6, 9, 12, 15, 18]
    assert kept[0]["answers"][0]["rewards"] == {"exact": None}


def test_draws_that_come_seldom_are_kept_all(tmp_path):
    for step in range(0, 300, 4):  # several updates to a draw
        if samples.due(tmp_path, step, 150):
            samples.write(tmp_path, step, [group(1)])
    assert len(samples.steps(tmp_path)) == 75


def test_going_on_forgets_what_will_be_drawn_again(tmp_path):
    for step in (0, 5, 10):
        samples.write(tmp_path, step, [group(1)])
    samples.rewind(tmp_path, 5)
    assert samples.steps(tmp_path) == [0]

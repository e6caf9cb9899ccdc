from squeeze.core.errors import hint


def test_a_near_miss_is_named_and_a_wild_guess_gets_the_list():
    assert hint("gtpq", ["rtn", "gptq"]) == "did you mean 'gptq'?"
    assert hint("xyz", ["rtn", "gptq"]) == "choose from: gptq, rtn"
    assert hint("xyz", []) == "there is none to choose from"

"""Tags that clients and proxies send in every form that HTTP has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.http.conditions import listed


@pytest.fixture
def database_url(tmp_path):
    """Conditions do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


TAGS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"'))


@given(TAGS, st.lists(st.tuples(TAGS, st.booleans())), st.booleans(), st.booleans())
def test_a_tag_is_listed_if_it_stands_in_any_line_weak_or_not(tag, others, is_weak, is_in_line):
    etag = f'"{tag}"'
    lines = [("W/" if weak else "") + f'"{other}"' for other, weak in others]
    expected = any(other == tag for other, _ in others)
    assert listed(lines, etag) is listed([", ".join(lines)], etag) is expected
    mine = ("W/" if is_weak else "") + etag
    lines = [f"{', '.join(lines)}, {mine}"] if is_in_line and lines else [*lines, mine]
    assert listed(lines, etag)


def test_all_tags_are_meant_by_a_star_alone():
    assert listed(["*"], '"1"')
    assert listed([" * "], '"1"')
    assert not listed(['"*"'], '"1"')
    assert not listed([], '"1"')


FORMS = {
    "the tag": "{}",
    "a weak one": "W/{}",
    "the last of a list": '"x", W/"y",{}',
    "the first of a list": '{} , "x"',
    "any": "*",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_job_and_a_file_that_have_not_changed_are_answered_with_304(service, digits_spec, form):
    job_id, rank = service.running(digits_spec)
    for path in (f"/jobs/{job_id}", f"/checkpoints/{rank.save(1)}/files/model.safetensors"):
        etag = service.get(path).headers["etag"]
        headers = {**service.user, "If-None-Match": form.format(etag)}
        answer = service.http.get(f"/v1{path}", headers=headers)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        headers["If-None-Match"] = form.format('"another"').replace("*", '"x"')
        assert service.http.get(f"/v1{path}", headers=headers).status_code == 200


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_change_of_the_version_that_is_listed_is_made(service, digits_spec, form):
    job_id = service.submit(digits_spec)
    etag = service.get(f"/jobs/{job_id}").headers["etag"]
    headers = {**service.user, "If-Match": form.format(etag)}
    answer = service.http.patch(f"/v1/jobs/{job_id}", json={"priority": 1}, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("form", ['"x"', 'W/"x"', '"x", "y"', "x", ""])
def test_a_change_of_another_version_is_not(service, digits_spec, form):
    job_id = service.submit(digits_spec)
    headers = {**service.user, "If-Match": form}
    url = f"/v1/jobs/{job_id}"
    answer = service.http.patch(url, json={"priority": 1}, headers=headers)
    assert answer.status_code == 412
    assert answer.json()["detail"].startswith('expected "1" in If-Match, saw ')
    assert service.http.get(url, headers=headers).status_code == 412
    service.post(f"/jobs/{job_id}/cancel")
    assert service.http.delete(url, headers=headers).status_code == 412
    assert service.http.delete(url, headers=service.user).status_code == 204


def test_tags_may_come_in_several_lines(service, digits_spec):
    job_id = service.submit(digits_spec)
    lines = [*service.user.items(), ("If-Match", '"x"'), ("If-Match", '"1"')]
    answer = service.http.patch(f"/v1/jobs/{job_id}", json={"priority": 1}, headers=lines)
    assert answer.status_code == 200


def test_a_weak_tag_of_a_file_does_not_let_a_range_be_glued_on(service, digits_spec):
    """Weakly equal files need not be equal byte for byte: RFC 9110, section 13.1.5."""
    _, rank = service.running(digits_spec)
    path = f"/v1/checkpoints/{rank.save(1, content=b'0123')}/files/model.safetensors"
    etag = service.http.get(path, headers=service.user).headers["etag"]
    for tag, status, content in ((etag, 206, b"23"), (f"W/{etag}", 200, b"0123")):
        headers = {**service.user, "Range": "bytes=2-", "If-Range": tag}
        answer = service.http.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (status, content)


def test_head_of_a_range_tells_of_the_whole_file(service, digits_spec):
    _, rank = service.running(digits_spec)
    path = f"/v1/checkpoints/{rank.save(1, content=b'0123')}/files/model.safetensors"
    answer = service.http.head(path, headers={**service.user, "Range": "bytes=2-"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, "4")


def test_an_action_on_another_version_is_not_done(service, digits_spec):
    job_id = service.submit(digits_spec)
    for tag, status in (('"7"', 412), ('"x", W/"1"', 202)):
        answer = service.post(f"/jobs/{job_id}/stop", headers={"If-Match": tag})
        assert answer.status_code == status
    assert service.phase(job_id) == "STOPPED"

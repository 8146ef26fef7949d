"""What the log of a table says about who committed what."""

import json

from jobs.commit import Commit, added_files, find_commit

APPEND = [
    {"commitInfo": {"operation": "WRITE", "userMetadata": "me", "operationMetrics": {"numOutputRows": "7"}}},
    {"txn": {"appId": "f#1", "version": 3}},
    {"add": {"path": "featurizer=a%401/part-1%20x.parquet"}},
]
MERGE = [
    {
        "commitInfo": {
            "operation": "MERGE",
            "userMetadata": "other",
            "operationMetrics": {"numTargetRowsInserted": "2", "numTargetRowsUpdated": "3", "numOutputRows": "90"},
        }
    },
    {"txn": {"appId": "f#1", "version": 4}},
]
PLAIN = [{"commitInfo": {"operation": "WRITE"}}, {"add": {"path": "part-2.parquet"}}, {"remove": {"path": "x"}}]


def test_a_commit_is_found_by_application_and_version_with_its_owner_and_rows() -> None:
    entries = [PLAIN, APPEND, MERGE]
    assert find_commit(entries, "f#1", 3) == Commit(owner="me", n_rows=7)
    assert find_commit(entries, "f#1", 4) == Commit(owner="other", n_rows=5)


def test_a_commit_of_another_version_or_application_is_not_mine() -> None:
    assert find_commit([PLAIN, APPEND], "f#1", 4) is None
    assert find_commit([PLAIN, APPEND], "f#2", 3) is None


def test_added_files_are_decoded_and_removed_ones_left_out() -> None:
    entries = json.loads(json.dumps([APPEND, PLAIN]))
    assert added_files(entries) == ["featurizer=a@1/part-1 x.parquet", "part-2.parquet"]

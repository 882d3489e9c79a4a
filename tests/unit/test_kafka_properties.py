"""A properties file of librdkafka is read as it is meant."""

from pathlib import Path

from gpuloop.loop.shells.kafka import properties


def test_no_file_says_nothing() -> None:
    assert properties(None) == {}


def test_places_are_meant_from_the_files_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text(
        "# a comment\n security.protocol = ssl \nssl.ca.location=ca.pem\n"
        "ssl.key.location=/keys/own.pem\nssl.certificate.location=\nsasl.password=a=b\n"
    )
    assert properties(path) == {
        "security.protocol": "ssl",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "ssl.key.location": "/keys/own.pem",
        "ssl.certificate.location": "",
        "sasl.password": "a=b",
    }


def test_what_librdkafka_looks_for_itself_is_no_place(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("ssl.ca.location=probe\n")
    assert properties(path) == {"ssl.ca.location": "probe"}

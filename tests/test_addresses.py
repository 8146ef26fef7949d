"""Which addresses may be dialled, from IANA's registries and clouds' manuals, and every spelling that hides one."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from jobs.addresses import (
    BlockedAddress,
    Dialled,
    Exemptions,
    checked_socket,
    dialled,
    hosts_without_contact,
    is_public,
    parse_exemptions,
)
from jobs.config import ConfigError
from jobs.exchange import opened_session
from jobs.urls import InvalidUrl, canonical_url
from tests.crawl_site import SETTINGS, answer, serving

# IANA IPv4 and IPv6 special-purpose address registries with their borders, read on their own and not from the code.
NOT_PUBLIC = {
    "this network, RFC 791": "0.0.0.0 0.0.0.1 0.1.2.3 0.255.255.255",
    "private use, RFC 1918": "10.0.0.0 10.0.0.1 10.255.255.255 172.16.0.0 172.20.1.1 172.31.255.255 192.168.0.0"
    " 192.168.1.1 192.168.255.255",
    "shared address space, RFC 6598": "100.64.0.0 100.64.0.1 100.100.1.1 100.127.255.255",
    "loopback": "127.0.0.0 127.0.0.1 127.0.1.1 127.127.127.127 127.255.255.255",
    "link local, RFC 3927": "169.254.0.0 169.254.1.1 169.254.255.255",
    "protocol assignments, RFC 6890": "192.0.0.0 192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.171"
    " 192.0.0.255",
    "documentation, RFC 5737": "192.0.2.0 192.0.2.255 198.51.100.0 198.51.100.255 203.0.113.0 203.0.113.255",
    "6to4 relays, RFC 7526": "192.88.99.0 192.88.99.1 192.88.99.255",
    "benchmarking, RFC 2544": "198.18.0.0 198.18.0.1 198.19.255.255",
    "multicast": "224.0.0.0 224.0.0.1 224.0.0.251 232.1.1.1 239.255.255.250 239.255.255.255",
    "reserved and broadcast": "240.0.0.0 240.0.0.1 250.1.2.3 255.255.255.254 255.255.255.255",
    "metadata and platform services of clouds": "169.254.169.254 169.254.169.123 169.254.170.2 169.254.170.23"
    " 169.254.42.42 169.254.0.23 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd00:ec2::23 fd20:ce::254"
    " fd00:42::42 fd00:a9fe:a9fe::1 fe80::a9fe:a9fe",
    "unspecified and loopback in IPv6": ":: ::1 ::2",
    "IPv4-compatible, RFC 4291": "::127.0.0.1 ::8.8.8.8 ::10.0.0.1 ::169.254.169.254",
    "IPv4-mapped": "::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0"
    " ::ffff:255.255.255.255 ::ffff:a9fe:a9fe",
    "IPv4-translated, RFC 2765": "::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 ::ffff:0:a00:1",
    "NAT64, RFC 6052": "64:ff9b:: 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::8.8.8.8 64:ff9b::ffff:ffff",
    "local NAT64, RFC 8215": "64:ff9b:1:: 64:ff9b:1::7f00:1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
    "discard only, RFC 6666 and 9780": "100:: 100::1 100:0:0:0:ffff:ffff:ffff:ffff 100:0:0:1::1",
    "Teredo, RFC 4380": "2001:: 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:ffff:ffff:ffff:ffff:ffff:ffff",
    "protocol assignments in IPv6": "2001:1::1 2001:1::2 2001:2::1 2001:3::1 2001:4:112::1 2001:1ff:ffff::1",
    "ORCHID and DRIP, RFC 4843, 7343 and 9374": "2001:10::1 2001:1f:ffff::1 2001:20::1 2001:2f::1 2001:30::1",
    "documentation in IPv6, RFC 3849 and 9637": "2001:db8:: 2001:db8::1 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 3fff::"
    " 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
    "6to4, RFC 3056": "2002:: 2002:7f00:1:: 2002:7f00:1::1 2002:a00:1::1 2002:808:808::1 2002:a9fe:a9fe::1"
    " 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "SRv6 SIDs, RFC 9602": "5f00:: 5f00::1 5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "unique local, RFC 4193": "fc00:: fc00::1 fd00::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "link local in IPv6": "fe80:: fe80::1 fe90::1 febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80::1%eth0 fe80::1%2",
    "site local, RFC 3879": "fec0:: fec0::1 feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "multicast in IPv6": "ff00:: ff01::1 ff02::1 ff02::fb ff05::2 ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "not allocated for global unicast": "1:: 1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 4000:: 8000::1 c000::1 fbff::1",
    "a zone": "2606:4700::1111%eth0 ::1%lo",
}
# Each next to a border above, or well known.
PUBLIC = """
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
    168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0
    192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0
    203.0.112.255 203.0.114.0 223.255.255.255 2000:: 2000::1 2001:200:: 2001:200::1 2001:4860:4860::8888
    2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2003:: 2606:4700::1111
    2a00:1450:4001::1 2620:fe::fe 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000::
    3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""


def test_the_tables_are_no_smaller_than_they_were() -> None:
    assert len({a for group in NOT_PUBLIC.values() for a in group.split()}) >= 150
    assert len(set(PUBLIC.split())) >= 45 and len({*NUMBERS.split(), *TRICKS}) >= 165


@pytest.mark.parametrize("address", [a for group in NOT_PUBLIC.values() for a in group.split()])
def test_an_address_of_no_public_host_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_up_to_the_borders_of_the_others_are_allowed(address: str) -> None:
    assert is_public(ip_address(address))


# -- spellings in URLs --------------------------------------------------------------------------------------------

NUMBERS = """
    http://127.0.0.1/ http://127.0.0.1. http://127.1 http://127.0.1 http://2130706433/ http://0x7f000001/
    http://0X7F000001 http://0x7f.1 http://0x7f.0x0.0x0.0x1 http://127.0x1 http://0177.0.0.1 http://0177.1
    http://00000177.1 http://017700000001 http://0 http://0x http://0x.0x.0 http://00 http://0.0 http://0.0.0.0:8080
    http://4294967295 http://4294967296 http://256.0.0.1 http://127.0.0.256 http://1.2.3.4.5 http://0xffffffff1
    http://3232235777 http://0xA9FEA9FE/ http://0251.0376.0251.0376 http://169.254.43518 http://169.16689662
    http://2852039166 http://0x0a000001 http://012.0.0.1 http://10.1 http://172.1048577 http://0x64.0x64.0x64.0xc8
    http://0300.0250.0.1 http://0250.63.129.16 http://127.0.0.1:8080/ https://127.0.0.1 http://0xe0000001
    http://09.0.0.1 http://127.0.0.0x http://127.0.0.08 http://a.0x http://good.example.1
    http://[::]/ http://[::1] http://[::1]:8080 http://[0:0:0:0:0:0:0:1] http://[0000::0001] http://[::127.0.0.1]
    http://[::ffff:127.0.0.1] http://[::FFFF:7F00:1] http://[0:0:0:0:0:ffff:7f00:1] http://[::ffff:169.254.169.254]
    http://[::ffff:0:127.0.0.1] http://[64:ff9b::127.0.0.1] http://[64:ff9b:1::7f00:1] http://[2002:7f00:1::]
    http://[2001:0:1::1] http://[fe80::1] http://[fd00:ec2::254]/latest http://[fc00::1] http://[fec0::1] http://[ff02::1]
    http://[5f00::1] http://[::1 http://::1/ http://[::1]x http://[[::1]] http://[::1%25lo] http://[fe80::1%25eth0]
    http://[fe80::1%eth0] http://[::1]:99999 http://[127.0.0.1] http://[::ffff:127.1] http://[::ffff:0x7f.0.0.1]
    http://[v1.fe80] http://[:::1] http://[1:2:3:4:5:6:7:8:9] http://[::%31] http://127.0.0.1:65536 http://127.0.0.1:x
"""
TRICKS = [
    "http://good.example@127.0.0.1/",
    "http://good.example:80@127.0.0.1/",
    "http://good.example%40127.0.0.1@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://:@127.0.0.1/",
    "http://a:b@c@127.0.0.1/",
    "http://127.0.0.1:80@good.example/",
    "http://127.0.0.1%2f@good.example/",
    "http://127.0.0.1#@good.example",
    "http://127.0.0.1#.good.example",
    "http://127.0.0.1?@good.example",
    "http://127.0.0.1/@good.example",
    "http://127.0.0.1\\@good.example",
    "http:\\\\127.0.0.1\\",
    "http:/\\127.0.0.1",
    "http:/127.0.0.1",
    "http:127.0.0.1",
    "http:///127.0.0.1",
    "http://////127.0.0.1",
    "http://127.0\t.0.1/",
    "http://127.0.\n0.1/",
    "http://127.0.\r\n0.1/",
    "ht\ttp://127.0.0.1/",
    "\x00 http://127.0.0.1 \x1f",
    "http://127.0.0.1 /",
    "http://127.0.0.1%20/",
    "http://127.0.0.1%00.good.example/",
    "http://127.0.0.1\x00.good.example/",
    "http://127.0.0.1%0d%0aHost:good.example/",
    "http://127.0.0.1<.good.example",
    "http://127.0.0.1|good.example",
    "http://%31%32%37.0.0.1/",
    "http://127%2e0%2e0%2e1/",
    "http://127.0.0.1%2e/",
    "http://%32%31%33%30%37%30%36%34%33%33/",
    "http://%2531%2532%2537.0.0.1/",
    "http://%5B::1%5D/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "http://\uff12\uff11\uff13\uff10\uff17\uff10\uff16\uff14\uff13\uff13/",
    "http://127\u30020\u30020\u30021/",
    "http://127\uff0e0\uff0e0\uff0e1/",
    "http://127\uff610\uff610\uff611/",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1/",
    "http://\u00b9\u00b2\u2077.\u2070.\u2070.\u00b9/",
    "http://0\uff587f.1/",
    "http://0\u24e57f.1/",
    "http://0x\u24bb\u24bb\u24bb\u24bb\u24bb\u24bb\u24bb\u24bb/",
    "http://\u0661\u0662\u0667.0.0.1/",
    "http://127.0.0.1\u00ad/",
    "http://1\u200b27.0.0.1/",
    "http://127.0.0\ufe0f.1/",
    "http://127.0.0\u200d.1/",
    "http://[\uff1a\uff1a1]/",
    "http://[::\uff11]/",
    "http://\ud800127.0.0.1/",
    "http://",
    "http://:80/",
    "http://?",
    "http://good.example:80:80/",
    "//127.0.0.1/",
    "127.0.0.1",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "FiLe:/etc/passwd",
    "ftp://127.0.0.1/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:fetch('http://127.0.0.1/')",
    "ws://127.0.0.1/",
    "wss://127.0.0.1/",
    "jar:http://127.0.0.1/a.jar!/",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "tftp://127.0.0.1/",
    "ssh://127.0.0.1/",
    "unix:///var/run/docker.sock",
    "view-source:http://127.0.0.1/",
    "blob:http://127.0.0.1/1",
    "filesystem:http://127.0.0.1/temporary/a",
    "about:blank",
    "http+unix://%2fvar%2frun%2fdocker.sock/",
    "httpx://127.0.0.1/",
]


@pytest.mark.parametrize("text", [*NUMBERS.split(), *TRICKS], ids=ascii)
def test_a_spelling_that_hides_a_private_address_is_no_url_or_that_very_address(text: str) -> None:
    try:
        url = canonical_url(text)
    except InvalidUrl:
        return
    match = re.fullmatch(r"(?:\[([0-9a-f:]+)\]|([0-9.]+))(?::[0-9]+)?", url.host)
    assert match, f"{url.host} is a name"
    address = ip_address(match[1] or match[2])
    assert not is_public(address)
    assert canonical_url(url.href) == url  # what is asked for is what was looked at


@pytest.mark.parametrize(
    ("base", "location"),
    [
        ("http://good.example/a", "//127.0.0.1/"),
        ("http://good.example/a", "\\\\127.0.0.1\\x"),
        ("http://good.example/a", "/\t/127.0.0.1/"),
        ("http://good.example/a", "http:////127.1"),
        ("http://good.example/a", "///2130706433"),
        ("https://good.example/a", "http:127.1"),
        ("http://good.example/a", "file:///etc/passwd"),
        ("http://good.example/a", "//x@127.0.0.1/"),
    ],
)
def test_a_redirect_cannot_hide_a_private_address_in_a_reference(base: str, location: str) -> None:
    try:
        url = canonical_url(location, base)
    except InvalidUrl:
        return
    assert not is_public(ip_address(url.host))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("http://134744072/", "8.8.8.8"),
        ("http://0x08.010.8", "8.8.0.8"),
        ("http://[2606:4700:0:0::1111]:8080/", "[2606:4700::1111]:8080"),
        ("http://good.example\\@127.0.0.1/", "good.example"),
        ("http:/good.example#@127.0.0.1", "good.example"),
        ("http://127.0.0.1.good.example/", "127.0.0.1.good.example"),
        ("http://127.0.0.1..", "127.0.0.1.."),
        ("http://127.0.0.-1/", "127.0.0.-1"),
    ],
)
def test_a_host_that_is_public_or_a_name_stays_the_host_whatever_surrounds_it(text: str, host: str) -> None:
    assert canonical_url(text).host == host


# -- exemptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "127.0.0.1", "127.0.0.1:", ":80", "localhost:80", "10.0.0.0/8:80", "127.0.0.1:0", "127.0.0.1:65536"),
        *("127.0.0.1:x", "127.0.0.1:+80", "127.0.0.1: 80", "127.0.0.1:8_0", "127.0.0.1:-80", "127.0.0.1:80 "),
        *("127.0.0.1:\u0668\u0660", "127.0.0.1:80:80", "127.1:80", "0177.0.0.1:80", "2130706433:80", "*:80"),
        *("::1:80", "::1:80x", "[::1]", "[::1]:", "[::1:80", "::1]:80", "[127.0.0.1]:80", "[fe80::1%eth0]:80"),
        *("[::1/128]:80", "http://127.0.0.1:80", "127.0.0.1:80-90", "127.0.0.1:80\n"),
    ],
    ids=ascii,
)
def test_what_is_not_one_address_and_one_port_is_no_exemption(text: str) -> None:
    with pytest.raises(ConfigError, match="not one IP address with a port"):
        parse_exemptions([text])


def test_an_exemption_is_one_address_of_one_family_and_one_port() -> None:
    assert parse_exemptions(["127.0.0.1:8080", "[::1]:80", "[0:0::2]:65535"]) == {
        (ip_address("127.0.0.1"), 8080),
        (ip_address("::1"), 80),
        (ip_address("::2"), 65535),
    }
    given = parse_exemptions(["127.0.0.1:80", "[::1]:8080", "10.0.0.1:80"])
    assert hosts_without_contact(given) == {"127.0.0.1", "127.0.0.1:80", "localhost", "localhost:80"} | {
        "[::1]:8080",
        "localhost:8080",
    }


# -- the socket ---------------------------------------------------------------------------------------------------


def made(host: str, port: int = 80, *, exempt: Sequence[str] = (), public: bool = True) -> Dialled:
    """What is seen when the socket for an address is made; nothing is dialled."""
    seen = Dialled()
    dialled.set(seen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = (host, port, 0, 0) if ":" in host else (host, port)
    make = checked_socket(parse_exemptions(exempt), public=public)
    try:
        with closing(make((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where))):
            pass
    except BlockedAddress as e:
        assert seen.refused == [str(e)] and str(e).startswith(f"{ip_address(host)} port {port} ")
    return seen


@pytest.mark.parametrize(
    ("host", "port", "exempt", "public", "is_let"),
    [
        ("8.8.8.8", 80, [], True, True),
        ("2606:4700::1111", 443, [], True, True),
        ("8.8.8.8", 80, [], False, False),
        ("127.0.0.1", 80, [], True, False),
        ("169.254.169.254", 80, [], True, False),
        ("fd00:ec2::254", 80, [], True, False),
        ("::ffff:8.8.8.8", 80, [], True, False),
        ("fe80::1%lo", 80, [], True, False),
        ("2606:4700::1111%lo", 80, [], True, False),
        ("127.0.0.1", 8080, ["127.0.0.1:8080"], True, True),
        ("127.0.0.1", 8080, ["127.0.0.1:8080"], False, True),
        ("127.0.0.1", 8081, ["127.0.0.1:8080"], True, False),
        ("127.0.0.2", 8080, ["127.0.0.1:8080"], True, False),
        ("::1", 8080, ["127.0.0.1:8080"], True, False),
        ("::ffff:127.0.0.1", 8080, ["127.0.0.1:8080"], True, False),
        ("::127.0.0.1", 8080, ["127.0.0.1:8080"], True, False),
        ("64:ff9b::7f00:1", 8080, ["127.0.0.1:8080"], True, False),
        ("0.0.0.0", 8080, ["127.0.0.1:8080"], True, False),
        ("::1", 8080, ["[::1]:8080"], False, True),
        ("fe80::1%lo", 8080, ["[fe80::1]:8080"], False, True),
        ("8.8.8.8", 80, ["127.0.0.1:80"], False, False),
        ("8.8.8.8", 80, ["8.8.8.8:80"], False, True),
    ],
)
def test_a_socket_is_made_for_a_public_address_and_for_an_exemption_and_for_nothing_else(
    host: str, port: int, exempt: Sequence[str], public: bool, is_let: bool
) -> None:
    seen = made(host, port, exempt=exempt, public=public)
    assert (seen.n_allowed, len(seen.refused)) == ((1, 0) if is_let else (0, 1))


@dataclass
class Names(AbstractResolver):
    """A name server of ours: each question for a name has the next of its answers, the last for ever."""

    answers: Mapping[str, Sequence[Sequence[str]]]
    asked: list[str] = field(default_factory=list)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        turns = self.answers[host]
        addresses = turns[min(self.asked.count(host), len(turns) - 1)]
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


def asked_by(
    names: Names, urls: Sequence[str], exemptions: Exemptions, contact: str | None
) -> list[tuple[str, Dialled]]:
    """What each URL gives, asked in turn by a session as crawls open it, but with our name server."""

    async def ask_all() -> list[tuple[str, Dialled]]:
        found = []
        async with opened_session(replace(SETTINGS, contact=contact, exemptions=exemptions)) as session:
            connector = session.connector
            assert isinstance(connector, aiohttp.TCPConnector)
            connector._resolver = names
            for url in urls:
                seen = Dialled()
                dialled.set(seen)
                connector.clear_dns_cache()
                try:
                    async with session.get(url, allow_redirects=False) as response:
                        found.append((f"{response.status}", seen))
                except (aiohttp.ClientError, OSError) as e:
                    found.append((type(getattr(e, "os_error", e)).__name__, seen))
        return found

    return asyncio.run(ask_all())


@pytest.mark.parametrize("contact", [None, "me@example.com"])
@pytest.mark.parametrize(
    ("answers", "expected", "n_refused"),
    [
        ([["127.0.0.1"]], ["200", "200"], 0),
        ([["127.0.0.2"]], ["BlockedAddress", "BlockedAddress"], 2),
        ([["10.0.0.1"]], ["BlockedAddress", "BlockedAddress"], 2),
        ([["169.254.169.254"]], ["BlockedAddress", "BlockedAddress"], 2),
        ([["::1"]], ["BlockedAddress", "BlockedAddress"], 2),
        ([["::ffff:127.0.0.1"]], ["BlockedAddress", "BlockedAddress"], 2),
        ([["127.0.0.1"], ["127.0.0.2"]], ["200", "BlockedAddress"], 1),
        ([["127.0.0.2"], ["127.0.0.1"]], ["BlockedAddress", "200"], 1),
        ([["127.0.0.2", "127.0.0.1"]], ["200", "200"], 2),
    ],
)
def test_a_name_reaches_only_those_of_its_addresses_that_may_be_dialled_whenever_it_is_asked(
    answers: Sequence[Sequence[str]], expected: Sequence[str], n_refused: int, contact: str | None
) -> None:
    page = answer(body=b"mine", Connection="close")  # or the connection would be used again, without a question
    with serving({"/": page}) as site, closing(socket.socket()) as other:
        other.bind(("127.0.0.2", site.port))
        other.listen()
        other.setblocking(False)
        names = Names({"rebound.example": answers})
        urls = [site.url("/"), *[f"http://rebound.example:{site.port}/"] * 2]
        (by_address, _), *found = asked_by(names, urls, parse_exemptions([site.address]), contact)
        assert by_address == "200" and [what for what, _ in found] == expected
        assert sum(len(seen.refused) for _, seen in found) == n_refused
        assert [seen.n_allowed for _, seen in found] == [int(what == "200") for what in expected]
        assert len(site.log) == 1 + expected.count("200") and names.asked == ["rebound.example"] * 2
        with pytest.raises(BlockingIOError):
            other.accept()  # nobody knocked


def test_several_refused_addresses_of_a_name_are_all_told_and_none_is_dialled() -> None:
    names = Names({"rebound.example": [["127.0.0.2", "10.0.0.1", "::1"]]})
    ((_, seen),) = asked_by(names, ["http://rebound.example:1/"], frozenset(), "me@example.com")
    assert seen.n_allowed == 0
    assert set(seen.refused) == {f"{address} port 1 is not public" for address in ("10.0.0.1", "127.0.0.2", "::1")}


def test_a_literal_address_is_looked_at_without_asking_for_a_name() -> None:
    with serving({"/": answer(body=b"mine")}) as site, serving({"/": answer(body=b"other")}) as other:
        names = Names({})
        urls = [
            site.url("/"),
            other.url("/"),
            f"http://127.0.0.2:{site.port}/",
            f"http://[::ffff:7f00:1]:{site.port}/",
            f"http://0.0.0.0:{site.port}/",
        ]
        found = asked_by(names, urls, parse_exemptions([site.address]), "me@example.com")
        assert [what for what, _ in found] == ["200"] + ["BlockedAddress"] * 4
        assert (len(site.log), other.log, names.asked) == (1, [], [])

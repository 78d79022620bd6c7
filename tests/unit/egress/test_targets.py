"""Addresses that somebody else wrote: what leads inside, what could be read in two ways, and what is fine."""

import ipaddress

import pytest

from stentor.core.addresses import AllowList, find_objection
from stentor.egress.targets import EgressRefused, check_target, read_target

# Each leads somewhere that a caller must not reach, or is written so that two programs could read it differently.
HOSTILE = [
    # this machine
    "http://127.0.0.1/",
    "http://127.0.0.1:4000/admin/api/users",
    "http://127.255.255.254/",
    "http://localhost/",
    "http://LOCALHOST:8080/",
    "http://app.localhost/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[0000::0001]:4801/",
    # numbers in other spellings
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0x7F.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.0.0.0x1/",
    "http://127.0.0.01/",
    "http://127.0.0.1./",
    "http://0/",
    "http://1/",
    "http://169.254.43518/",
    "http://4294967295/",
    "http://256.256.256.256/",
    "http://1.2.3.4.5/",
    # private, shared, link-local, special
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://169.254.170.2/v2/credentials/",
    "http://168.63.129.16/machine",
    "http://192.0.0.192/opc/v1/instance/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.7/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    # IPv6, and IPv4 inside it
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::127.0.0.1]/",
    "http://[::7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::10.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[2001:db8::1]/",
    "http://[2001:10::1]/",
    "http://[3fff::1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    # names
    "http://example.com./",
    "http://.example.com/",
    "http://example..com/",
    "http://-example.com/",
    "http://exa mple.com/",
    "http://example.com\t/",
    "http://ex%61mple.com/",
    "http://127.0.0.1%2f.example.com/",
    "http://example.com%00.internal/",
    "http://①②⑦.⓪.⓪.①/",
    "http://ｌｏｃａｌｈｏｓｔ/",
    "http://127。0。0。1/",
    "http://examplе.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 130 + "com/",
    # user names and where an authority ends
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1@example.com/",
    "http://example.com:80@127.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://example.com\\.internal/",
    "http:///127.0.0.1/",
    "http:/127.0.0.1/",
    "http:127.0.0.1",
    "//127.0.0.1/",
    "http://",
    "http://?host",
    "http://#@example.com/",
    "http://[::1/",
    "http://::1/",
    "http://[v1.fe]/",
    "http://[127.0.0.1]/",
    "http://example.com,127.0.0.1/",
    "http://example.com:80:80/",
    # ports
    "http://example.com:0/",
    "http://example.com:22/",
    "http://example.com:25/",
    "https://example.com:445/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:8o8o/",
    "http://example.com:٣٣٣٣/",
    # other schemes
    "file:///etc/passwd",
    "ftp://example.com/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "unix:///run/docker.sock",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "jar:http://example.com!/",
    "ws://example.com/",
    "http+unix://%2Frun%2Fdocker.sock/",
    " http://example.com/",
    "http://example.com/\r\nHost: internal",
    "",
    "example.com",
    "http://example.com/" + "a" * 5000,
]

FINE = {
    "https://example.com/v1/models": "https://example.com/v1/models",
    "HTTPS://Example.COM/Path?q=1#part": "https://example.com/Path?q=1",
    "http://example.com": "http://example.com/",
    "https://example.com:443/": "https://example.com/",
    "https://example.com:8443/x": "https://example.com:8443/x",
    "http://8.8.8.8/": "http://8.8.8.8/",
    "http://[2606:4700:4700::1111]:8080/": "http://[2606:4700:4700::1111]:8080/",
    "http://[64:ff9b::808:808]/": "http://[64:ff9b::808:808]/",
    "https://xn--bcher-kva.example/": "https://xn--bcher-kva.example/",
    "https://my_host.example.com/": "https://my_host.example.com/",
    "https://example.com/a@b:c": "https://example.com/a@b:c",
    "https://example.com?x=/": "https://example.com/?x=/",
}


def judge(url: str, *allow: str) -> None:
    check_target(read_target(url), AllowList(allow))


def test_the_corpus_is_large_enough() -> None:
    assert len(set(HOSTILE)) >= 100


@pytest.mark.parametrize("url", HOSTILE)
def test_refuses_before_anything_is_asked(url: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        judge(url)
    assert "pass" not in caught.value.message.split()


@pytest.mark.parametrize("url", FINE)
def test_reads_what_is_plain(url: str) -> None:
    judge(url)
    assert read_target(url).url == FINE[url]


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://10.1.2.3:8000/", "10.0.0.0/8"),
        ("http://10.1.2.3/", "10.1.2.3"),
        ("http://[::ffff:10.1.2.3]/", "10.0.0.0/8"),
        ("http://[fd00::5]/", "fd00::/8"),
        ("http://[fd00::5]/", "[fd00::5]"),
        ("http://localhost:8000/", "localhost"),
        ("http://gpu.lan:22/", "gpu.lan"),
        ("http://a.b.lan:81/", "*.lan"),
    ],
)
def test_an_operator_may_allow_it(url: str, entry: str) -> None:
    with pytest.raises(EgressRefused):
        judge(url)
    judge(url, entry)


@pytest.mark.parametrize("entry", ["", "10.0.0.0/33", "http://x", "a b", "x:80", "*", "1.2.3", "a/b", "*.*.com"])
def test_an_entry_that_is_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        AllowList((entry,))


def test_every_address_that_python_calls_private_is_refused() -> None:
    """A second opinion: the standard library's list must not know more than ours."""
    blocks = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "0.0.0.0/8", "240.0.0.0/4"]
    for block in blocks:
        network = ipaddress.ip_network(block)
        for address in (network[0], network[-1], network[network.num_addresses // 2]):
            assert find_objection(address) is not None
    step = 2**32 // 65_521  # a prime number of samples over all of IPv4
    for number in range(0, 2**32, step):
        address = ipaddress.IPv4Address(number)
        if not address.is_global or address.is_multicast:
            assert find_objection(address) is not None, address

"""Which passwords are accepted, and how hashes of every age are verified and upgraded."""

from __future__ import annotations

import base64
import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Callable

import argon2
import bcrypt
import pytest
from argon2.low_level import Type, hash_secret

from tokenctl.core.passwords import (
    MAX_VERIFIED_LENGTH,
    PasswordHasher,
    PasswordPolicy,
    Verified,
    check_new_password,
    known_scheme,
)
from tokenctl.errors import PasswordRefused

CHEAP = PasswordPolicy(memory_kib=64, iterations=1)
HASHER = PasswordHasher(CHEAP)
SALT = b"sixteen bytes ok"
PASSWORD = "plum orbit kettle sandal"
NO = Verified(ok=False, upgraded_hash=None)


# Hashes are made without passlib here, so that its own mistakes would show.


def b64(raw: bytes, alternate: bytes = b"+/") -> str:
    return base64.b64encode(raw, alternate).decode().rstrip("=")


def bcrypt_hash(password: str = PASSWORD, prefix: bytes = b"2b", rounds: int = 4) -> str:
    return (
        bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(rounds, b"2b"))
        .replace(b"$2b$", b"$%s$" % prefix)
        .decode()
    )


def pbkdf2_hash(password: str = PASSWORD, digest: str = "sha256", rounds: int = 10) -> str:
    checksum = hashlib.pbkdf2_hmac(digest, password.encode(), SALT, rounds)
    return f"$pbkdf2-{digest}${rounds}${b64(SALT, b'./')}${b64(checksum, b'./')}"


def django_hash(password: str = PASSWORD, rounds: int = 10) -> str:
    checksum = hashlib.pbkdf2_hmac("sha256", password.encode(), b"saltsalt", rounds)
    return f"pbkdf2_sha256${rounds}$saltsalt${base64.b64encode(checksum).decode()}"


def scrypt_hash(password: str = PASSWORD) -> str:
    checksum = hashlib.scrypt(password.encode(), salt=SALT, n=16, r=8, p=1, dklen=32)
    return f"$scrypt$ln=4,r=8,p=1${b64(SALT)}${b64(checksum)}"


def argon2_hash(
    password: str = PASSWORD,
    memory: int = 64,
    iterations: int = 1,
    lanes: int = 1,
    kind: Type = Type.ID,
    version: int = 19,
) -> str:
    return hash_secret(password.encode(), SALT, iterations, memory, lanes, 32, kind, version).decode()


@pytest.fixture
def argon2_runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often Argon2 really ran, by which function."""
    runs: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., object]:
        original: Callable[..., object] = getattr(argon2.low_level, name)

        def call(*arguments: object, **options: object) -> object:
            runs[name] += 1
            return original(*arguments, **options)

        return call

    for name in ("hash_secret", "verify_secret"):
        monkeypatch.setattr(argon2.low_level, name, counted(name))
    return runs


# --- hashing and verifying -------------------------------------------------------------------


def test_the_default_parameters_are_current() -> None:
    policy = PasswordPolicy()
    assert (policy.min_length, policy.max_length) == (15, 128)
    hashed = PasswordHasher(policy).hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_the_policy_decides_the_parameters() -> None:
    hashed = PasswordHasher(PasswordPolicy(memory_kib=128, iterations=3, parallelism=2)).hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=128,t=3,p=2$")


def test_a_hash_verifies_its_password_and_no_other() -> None:
    hashed = HASHER.hash(PASSWORD)
    assert HASHER.verify(PASSWORD, hashed) == Verified(ok=True, upgraded_hash=None)
    assert argon2.PasswordHasher().verify(hashed, PASSWORD)
    for other in ("", PASSWORD + " ", " " + PASSWORD, PASSWORD.upper(), PASSWORD[:-1]):
        assert HASHER.verify(other, hashed) == NO


def test_two_hashes_of_one_password_differ() -> None:
    assert HASHER.hash(PASSWORD) != HASHER.hash(PASSWORD)


def test_a_given_salt_makes_the_hash_reproducible() -> None:
    hashed = HASHER.hash(PASSWORD, salt=SALT)
    assert hashed == argon2_hash()
    assert HASHER.verify(PASSWORD, hashed).ok


def test_a_password_is_verified_as_received() -> None:
    composed, decomposed = "schöne aussicht überall", "scho\u0308ne aussicht u\u0308berall"
    assert HASHER.verify(composed, HASHER.hash(composed)).ok
    assert HASHER.verify(decomposed, HASHER.hash(composed)) == NO


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(bcrypt_hash(), id="bcrypt"),
        pytest.param(bcrypt_hash(prefix=b"2a"), id="bcrypt 2a"),
        pytest.param(bcrypt_hash(prefix=b"2y"), id="bcrypt 2y, PHP"),
        pytest.param(pbkdf2_hash(), id="pbkdf2_sha256"),
        pytest.param(pbkdf2_hash(digest="sha512"), id="pbkdf2_sha512"),
        pytest.param(django_hash(), id="django_pbkdf2_sha256"),
        pytest.param(scrypt_hash(), id="scrypt"),
        pytest.param(argon2_hash(kind=Type.I), id="argon2i"),
        pytest.param(argon2_hash(kind=Type.D), id="argon2d"),
        pytest.param(argon2_hash(version=16).replace("v=16$", ""), id="argon2 version 1.0"),
        pytest.param(argon2_hash(memory=32), id="argon2id with less memory"),
        pytest.param(argon2_hash(memory=32, iterations=8), id="argon2id with less memory, more iterations"),
    ],
)
def test_an_older_hash_is_accepted_and_upgraded(stored: str) -> None:
    assert known_scheme(stored)
    verified = HASHER.verify(PASSWORD, stored)
    assert verified.ok
    assert verified.upgraded_hash is not None
    assert verified.upgraded_hash.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert HASHER.verify(PASSWORD, verified.upgraded_hash) == Verified(ok=True, upgraded_hash=None)
    assert HASHER.verify(PASSWORD + "x", stored) == NO


def test_a_bcrypt_salt_with_stray_bits_is_that_without() -> None:
    """As some libraries wrote them; passlib warns of those, and a warning is an error here."""
    salt = b"$2b$04$" + b"." * 21
    stored = bcrypt.hashpw(PASSWORD.encode(), salt + b".").decode()
    stray = stored[:28] + "/" + stored[29:]
    assert known_scheme(stray)
    assert HASHER.verify(PASSWORD, stray).upgraded_hash is not None
    assert HASHER.verify("another one", stray) == NO


def test_fewer_iterations_are_upgraded() -> None:
    strict = PasswordHasher(PasswordPolicy(memory_kib=64, iterations=2))
    assert strict.verify(PASSWORD, argon2_hash(iterations=1)).upgraded_hash is not None
    assert strict.verify(PASSWORD, argon2_hash(iterations=2)).upgraded_hash is None


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(argon2_hash(memory=128), id="more memory"),
        pytest.param(argon2_hash(iterations=3), id="more iterations"),
        pytest.param(argon2_hash(memory=128, iterations=3, lanes=4), id="more of everything"),
    ],
)
def test_a_stronger_hash_is_kept(stored: str) -> None:
    assert HASHER.verify(PASSWORD, stored) == Verified(ok=True, upgraded_hash=None)


# --- the same work for everybody -------------------------------------------------------------


def test_a_known_user_costs_one_hash(argon2_runs: Counter[str]) -> None:
    hashed = argon2_hash()
    assert HASHER.verify("wrong", hashed) == NO
    assert argon2_runs == {"verify_secret": 1}


UNUSABLE = [
    pytest.param(None, id="no such user"),
    pytest.param("", id="empty"),
    pytest.param("!", id="locked account"),
    pytest.param("plain text", id="plain text"),
    pytest.param("\0", id="NUL"),
    pytest.param("é" * 60, id="not ASCII"),
    pytest.param("\ud800", id="half a surrogate pair"),
    pytest.param("x" * 1_000_000, id="huge"),
    pytest.param("5f4dcc3b5aa765d61d8327deb882cf99", id="MD5"),
    pytest.param("$1$abcdefgh$irWbblnpmw.5z7wgBnprh0", id="md5_crypt"),
    pytest.param("$6$rounds=5000$saltsalt$" + "a" * 86, id="sha512_crypt"),
    pytest.param("scrypt:32768:8:1$salt$00", id="werkzeug"),
    pytest.param("$argon2id$", id="argon2 cut off"),
    pytest.param("$argon2id$v=19$m=64,t=1,p=1$c2l4dGVlbiBieXRlcw", id="argon2 without a checksum"),
    pytest.param("$argon2xx$v=19$m=64,t=1,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2 of no kind"),
    pytest.param("$argon2id$v=99$m=64,t=1,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2 of the future"),
    pytest.param("$argon2id$v=19$m=64,t=1,p=1,keyid=a$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2 keyid"),
    pytest.param("$argon2id$v=19$m=4294967295,t=1,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2, 4 TiB"),
    pytest.param("$argon2id$v=19$m=64,t=4294967295,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2, years"),
    pytest.param(
        "$argon2id$v=19$m=99999,t=1,p=9999$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="argon2, 9999 threads"
    ),
    pytest.param(
        "$argon2id$v=19$m=" + "9" * 5000 + ",t=1,p=1$c2l4dGVlbiBieXRlcw$AAAA", id="argon2 long number"
    ),
    pytest.param("$2b$04$", id="bcrypt cut off"),
    pytest.param("$2b$04$" + "!" * 53, id="bcrypt junk"),
    pytest.param("$2x$04$" + "." * 53, id="bcrypt 2x"),
    pytest.param("$2b$31$" + "." * 53, id="bcrypt, a day"),
    pytest.param("$scrypt$ln=31,r=8,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="scrypt, 2 TiB"),
    pytest.param("$scrypt$n=4,r=8,p=1$c2l4dGVlbiBieXRlcw$" + "A" * 43, id="scrypt malformed"),
    pytest.param("$pbkdf2-sha256$4294967295$c2FsdHNhbHQ$" + "A" * 43, id="pbkdf2, an hour"),
    pytest.param("$pbkdf2-sha256$x$c2FsdHNhbHQ$" + "A" * 43, id="pbkdf2 malformed"),
    pytest.param("pbkdf2_sha256$x$y$z", id="django malformed"),
]


@pytest.mark.parametrize("stored", UNUSABLE)
def test_an_unusable_hash_costs_one_hash_too(stored: str | None, argon2_runs: Counter[str]) -> None:
    assert HASHER.verify(PASSWORD, stored) == NO
    assert argon2_runs == {"hash_secret": 1}


@pytest.mark.parametrize("stored", UNUSABLE[1:])
def test_an_unusable_hash_is_not_imported(stored: str) -> None:
    assert not known_scheme(stored)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(argon2_hash(), id="argon2"),
        pytest.param(bcrypt_hash(), id="bcrypt"),
        pytest.param(pbkdf2_hash(), id="pbkdf2_sha256"),
        pytest.param(django_hash(), id="django_pbkdf2_sha256"),
        pytest.param(scrypt_hash(), id="scrypt"),
        pytest.param(None, id="no such user"),
    ],
)
@pytest.mark.parametrize(
    "password",
    [
        pytest.param("", id="empty"),
        pytest.param("a\0b", id="NUL"),
        pytest.param("x" * 80, id="over the 72 bytes of bcrypt"),
        pytest.param("é" * 40, id="over them in bytes"),
        pytest.param("x" * MAX_VERIFIED_LENGTH, id="at the limit"),
        pytest.param("x" * 1_000_000, id="1 MB"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param("🔑" * 100, id="emoji"),
    ],
)
def test_odd_passwords_are_wrong_and_nothing_else(password: str, stored: str | None) -> None:
    assert HASHER.verify(password, stored) == NO


@pytest.mark.parametrize(
    ("password", "stored"),
    [
        pytest.param("x" * (MAX_VERIFIED_LENGTH + 1), argon2_hash(), id="too long"),
        pytest.param("\ud800", argon2_hash(), id="not text"),
        pytest.param("a\0b", bcrypt_hash(), id="NUL for bcrypt"),
    ],
)
def test_a_password_that_cannot_be_hashed_costs_one_hash(
    password: str, stored: str, argon2_runs: Counter[str]
) -> None:
    assert HASHER.verify(password, stored) == NO
    assert argon2_runs == {"hash_secret": 1}


def test_a_huge_password_is_refused_before_hashing() -> None:
    """Its length must not show in the work: 100 MB take as long as a short one, within an order."""
    slow = PasswordHasher(PasswordPolicy(memory_kib=4096, iterations=1))
    stored, huge = slow.hash(PASSWORD), "x" * 100_000_000

    def cost(password: str) -> float:
        began = time.thread_time()
        assert not slow.verify(password, stored).ok
        return time.thread_time() - began

    assert min(cost(huge) for _ in range(5)) < 10 * min(cost("short") for _ in range(5))


# --- bcrypt's 72 bytes -----------------------------------------------------------------------


def test_a_long_password_of_an_old_bcrypt_user() -> None:
    long = "plum orbit kettle sandal " * 4
    stored = bcrypt_hash(long)
    assert HASHER.verify(long, stored) == Verified(ok=True, upgraded_hash=None)
    assert HASHER.verify("x" + long, stored) == NO
    assert HASHER.verify(long[:71], stored) == NO


def test_a_huge_password_is_wrong_for_bcrypt_too() -> None:
    assert HASHER.verify("x" * 1_000_000, bcrypt_hash("x" * 72)) == NO


def test_an_unverified_tail_is_never_hashed() -> None:
    """Else a typing error behind byte 72 would become the user's password."""
    exact = ("plum orbit kettle sandal " * 4)[:72]
    stored = bcrypt_hash(exact)
    assert HASHER.verify(exact, stored).upgraded_hash is not None
    assert HASHER.verify(exact + "typo", stored).upgraded_hash is None


def test_72_bytes_may_end_within_a_character() -> None:
    long = "x" + "é" * 50
    stored = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()
    assert HASHER.verify(long, stored).ok


# --- new passwords ---------------------------------------------------------------------------


def refuse(
    password: str, user_name: str = "alice.smith@example.com", policy: PasswordPolicy = CHEAP
) -> PasswordRefused:
    with pytest.raises(PasswordRefused) as caught:
        check_new_password(password, user_name, policy)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "das sommerfest ist schön",
        "vellum quartz hemlock",
        "aaaaaaaa is how my screaming starts",
        "Zx9#mQ2$vL7@pR4",
        "4028841971693993751",
        "пароль из четырёх слов",
        "私の秘密の合言葉は長いですよね",
        "    lots   of   blank   space  kept ",
        "kettle\0sandal\0orbit",
        "🔑🚲🌵🧊🎻 kettle sandal",
        "🔑🚲🌵🧊🎻🥨🪁🧵🛶🎈🐙🍄🧭🪐🦉",
        "{]+)~<|>;(=}[:&",
        "tokenctl kettle sandal",
        "alice likes kettles",
        "x" * 14 + PASSWORD,
    ],
)
def test_accepted_passwords(password: str) -> None:
    check_new_password(password, "alice.smith@example.com", CHEAP)
    assert HASHER.verify(password, HASHER.hash(password)).ok


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("passwordpassword", id="a unit repeated"),
        pytest.param("abcabcabcabcabc", id="a short unit repeated"),
        pytest.param("kzqvwjykzqvwjykz", id="a unit repeated, the last one cut off"),
        pytest.param("aaaaaaaaaaaaaaaa", id="one character"),
        pytest.param("                ", id="blanks"),
        pytest.param("aaaaaaaaaaaaaaab", id="one character, nearly"),
        pytest.param("zzzzzzzzqqqqqqqq", id="two characters"),
        pytest.param("password1234567", id="a word and digits"),
        pytest.param("Password2024!!!", id="a word, a year, marks"),
        pytest.param("Summer1987 Winter2024", id="words and years"),
        pytest.param("monkey dragon summer falcon ginger banana", id="common words with blanks"),
        pytest.param("P@$$w0rd-P4ssword!", id="lookalikes"),
        pytest.param("PASSWORD WELCOME", id="capitals"),
        pytest.param("iloveyousunshine", id="two common words"),
        pytest.param("monkey dragon summer", id="three common words"),
        pytest.param("correct horse battery staple", id="the famous one"),
        pytest.param("123456789012345", id="digits"),
        pytest.param("987654321098765", id="digits backwards"),
        pytest.param("abcdefghijklmno", id="alphabet"),
        pytest.param("zyxwvutsrqponml", id="alphabet backwards"),
        pytest.param("qwertyuiopasdfgh", id="rows of keys"),
        pytest.param("qwertzuiopyxcvbnm", id="rows of German keys"),
        pytest.param("1q2w3e4r5t6y7u8i", id="two rows in zigzag"),
        pytest.param("1qaz2wsx3edc4rfv", id="columns of keys"),
        pytest.param("!@#$%^&*()!@#$%", id="the digits with shift"),
        pytest.param("abcd1234qwer5678", id="runs in a row"),
        pytest.param("alice.smith@example.com", id="the user's name"),
        pytest.param("ALICE.SMITH@EXAMPLE.COM", id="the user's name in capitals"),
        pytest.param("alice.smith1990!", id="the user's name and a year"),
        pytest.param("smith alice smith", id="parts of the user's name"),
        pytest.param("smith-password-1", id="a part of the user's name and a word"),
        pytest.param("tokenctl-tokenctl!", id="ours"),
        pytest.param("tokenctl-password", id="ours and a word"),
    ],
)
def test_common_passwords(password: str) -> None:
    refused = refuse(password)
    assert "too common" in refused.message
    assert refused.code == "password.refused"


def test_only_the_own_name_counts() -> None:
    check_new_password("smith alice smith", "bob", CHEAP)
    assert "too common" in refuse("smith alice smith", "Alice.SMITH").message


def test_single_letters_of_the_name_do_not_count() -> None:
    check_new_password("aoeuaieoiaeuoiae", "a.e.i.o.u", CHEAP)


@pytest.mark.parametrize("user_name", ["", "a", "é", "a.b", "(", "[a-z]+", "\\", "İ", "alice" * 50])
def test_any_user_name_will_do(user_name: str) -> None:
    check_new_password(PASSWORD, user_name, CHEAP)


def test_lengths_are_counted_in_code_points() -> None:
    assert "it has 14;" in refuse("kettlesandalor").message
    check_new_password("kettlesandalorb", "", CHEAP)
    assert "too short" in refuse("🔑🚲🌵🧊🎻").message
    decomposed = "u\u0308bero\u0308lkettle\u0308s"
    assert len(decomposed) == 16
    check_new_password(decomposed, "", CHEAP)


def test_the_longest_password() -> None:
    long = "".join(chr(0x4E00 + n * 37) for n in range(129))
    check_new_password(long[:128], "", CHEAP)
    refused = refuse(long)
    assert "too long" in refused.message
    assert refused.facts == {"max_length": 128}


def test_a_megabyte_is_refused_for_its_length() -> None:
    assert "too long" in refuse("x" * 1_000_000).message


def test_the_policy_decides_the_lengths() -> None:
    short = PasswordPolicy(min_length=8, max_length=20, memory_kib=64, iterations=1)
    check_new_password("kzqvwjyx", "", short)
    assert "at least 8" in refuse("kzqvwjy", policy=short).message
    assert "too common" in refuse("password", policy=short).message
    assert "too common" in refuse("hunter22", policy=short).message
    assert "20 are the most" in refuse(PASSWORD, policy=short).message


def test_a_unit_of_full_length_may_repeat() -> None:
    check_new_password(PASSWORD * 2, "", CHEAP)


def test_half_a_surrogate_pair_is_no_password() -> None:
    assert "not text" in refuse("kettle sandal orbit \ud800").message


@pytest.mark.parametrize(
    "password", ["canaryCANARY", "canaryCANARY" * 3, "canaryCANARY" * 30, "canaryCANARYcanary\ud800"]
)
def test_a_refusal_never_repeats_the_password(password: str) -> None:
    refused = refuse(password)
    told = "".join(traceback.format_exception(refused)) + refused.hint + repr(refused.facts)
    assert "canaryCANARY" not in told

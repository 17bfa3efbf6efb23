"""Torch files that were made to harm whoever reads them, one maker for each kind.

The names that a pickle may want to call are those of published gadgets: advisories of picklescan and fickling, and what
their tests hold. The bytes are made here.
"""

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rnp_mlflow.loading.foreign import TORCH_LEGACY

GADGETS = (
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.__import__",
    "builtins.bytearray",
    "builtins.compile",
    "__builtin__.apply",
    "pip.main",
    "pip._internal.main",
    "pydoc.locate",
    "pydoc.pipepager",
    "pkgutil.resolve_name",
    "importlib.import_module",
    "runpy.run_path",
    "cProfile.run",
    "profile.run",
    "pdb.run",
    "bdb.Bdb.run",
    "timeit.timeit",
    "trace.Trace.run",
    "doctest.debug_script",
    "code.interact",
    "code.InteractiveInterpreter",
    "codeop.compile_command",
    "marshal.loads",
    "types.FunctionType",
    "types.CodeType",
    "ctypes.CDLL",
    "_ctypes.dlopen",
    "pty.spawn",
    "multiprocessing.util.spawnv_passfds",
    "sys.exit",
    "webbrowser.open",
    "operator.attrgetter",
    "operator.methodcaller",
    "_operator.itemgetter",
    "functools.partial",
    "functools.reduce",
    "io.FileIO",
    "io.open",
    "logging.FileHandler",
    "logging.config._resolve",
    "shutil.rmtree",
    "socket.create_connection",
    "ssl.get_server_certificate",
    "http.client.HTTPSConnection",
    "smtplib.SMTP",
    "imaplib.IMAP4_stream",
    "uuid._get_command_stdout",
    "asyncio.unix_events._UnixSubprocessTransport._start",
    "idlelib.run.Executive.runcode",
    "lib2to3.pgen2.pgen.ParserGenerator.make_label",
    "distutils.file_util.write_file",
    "ensurepip._run_pip",
    "cgitb.lookup",
    "venv.create",
    "test.support.script_helper.assert_python_ok",
    "pickle.loads",
    "_pickle.loads",
    "dill.loads",
    "cloudpickle.loads",
    "joblib.load",
    "shelve.open",
    "copyreg._reconstructor",
    "numpy.load",
    "numpy.f2py.crackfortran.getlincoef",
    "numpy.testing._private.utils.runstring",
    "numpy.core.fromfile",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.jit.unsupported_tensor_ops.execWrapper",
    "torch.utils.bottleneck.__main__.run_cprofile",
    "torch.utils.collect_env.run",
    "torch.utils._config_module.ConfigModule.load_config",
    "torch.utils.data.datapipes.utils.decoder.basichandlers",
    "torch._dynamo.guards.GuardBuilder.get",
    "torch._inductor.codecache.compile_file",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
    "torch.distributed.rpc.internal._InternalRPCPickler",
    "torch.storage._load_from_bytes",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_wrapper_subclass",
    "torch.nn.Module",
    "torch.sparse_coo_tensor",
    "transformers.pipelines.pipeline",
    "pandas.eval",
    "sympy.sympify",
    "PIL.ImageMath.eval",
    "mlflow.pyfunc.load_model",
)


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def call(full: str, arguments: bytes) -> bytes:
    """A call; the arguments follow a mark."""
    return name(full) + b"(" + arguments + b"tR"


def doubled(times: int, last: bytes, pair: bytes = b"\x86") -> bytes:
    """A tuple of the same thing twice, `times` deep: 2 to the power of `times` leaves."""
    return last + b"".join(b"r" + struct.pack("<I", k) + b"j" + struct.pack("<I", k) + pair for k in range(times))


def storage(key: str = "0", count: bytes = b"K\2", kind: str = "torch.FloatStorage", part: bytes = b"") -> bytes:
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + count + part + b"tQ"


def tensor(place: bytes = b"", offset: bytes = b"K\0", sizes: bytes = b"K\2\x85", strides: bytes = b"K\1\x85") -> bytes:
    return call("torch._utils._rebuild_tensor_v2", (place or storage()) + offset + sizes + strides + b"\x89" + b"}")


def weights(entries: bytes) -> bytes:
    """A state dict; the entries, of keys and values, follow a mark."""
    return b"}(" + entries + b"u"


STORED: Mapping[str, bytes] = {"0": struct.pack("<2f", 1, 2)}
GOOD = weights(text("w") + tensor())
OLDER = weights(text("w") + tensor(storage(part=b"N")))
KEYS = b"](" + text("0") + b"e"
COUNTED = struct.pack("<q", 2) + bytes(8)  # a storage, as the older form has it
SYSTEM = call("os.system", text("id"))


def archive(
    file: Path, pickle: bytes, stored: Mapping[str, bytes] = STORED, more: Mapping[str, bytes] | None = None
) -> Path:
    """A torch archive with this pickle (without protocol and stop), these storages, and other entries."""
    with zipfile.ZipFile(file, "w") as found:
        found.writestr("w/data.pkl", b"\x80\2" + pickle + b".")
        for key, content in stored.items():
            found.writestr(f"w/data/{key}", content)
        for entry, content in (more or {}).items():
            found.writestr(entry, content)
    return file


def older(file: Path, pickle: bytes, keys: bytes, stored: bytes) -> Path:
    """A file of before torch 1.6: its pickle, the pickle of the list of storages, and their bytes."""
    rows = (b"\x80\2M\xe9\x03.", b"\x80\2}.", b"\x80\2" + pickle + b".", b"\x80\2" + keys + b".", stored)
    file.write_bytes(TORCH_LEGACY + b"".join(rows))
    return file


def changed(file: Path, former: bytes, now: bytes, last: bool = False) -> Path:
    content = file.read_bytes()
    assert former in content
    before, _, after = content.rpartition(former) if last else content.partition(former)
    file.write_bytes(before + now + after)
    return file


def zip_of(file: Path, entries: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as found:
        for entry, content in entries.items():
            found.writestr(entry, content)
    return file


def flagged(file: Path, bits: int) -> Path:
    """Set bits in the flags of every entry, in the directory and in the local header."""
    content = bytearray(file.read_bytes())
    for start, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(start)
        while at >= 0:
            content[at + offset] |= bits
            at = content.find(start, at + 4)
    file.write_bytes(content)
    return file


def overlapping(file: Path, count: int) -> Path:
    """Entries that are all the same bytes of the file."""
    with zipfile.ZipFile(file, "w") as found:
        found.writestr("w/data.pkl", b"\x80\2" + GOOD + b".")
        found.writestr("w/data/0", bytes(100_000))
        first = found.filelist[-1]
        for k in range(1, count):
            entry = zipfile.ZipInfo(f"w/data/{k}")
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            found.filelist.append(entry)
    return file


def deflated(file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as found:
        found.writestr("w/data.pkl", b"\x80\2" + weights(text("w") + tensor(storage(count=number(10**8)))) + b".")
        found.writestr("w/data/0", bytes(4 * 10**8))
    return file


# what the pickle of an archive is, and the words of the error
PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bytearray of 3 GiB": (
        lambda: call("__builtin__.bytearray", number(3 << 30)),
        "would have to run builtins.bytearray",
    ),
    "hash of 2^60 steps": (lambda: b"}" + doubled(60, b"K\1") + b"K\1s", "damaged"),
    "300 kB of punycode": (lambda: call("_codecs.encode", text("a" + "é" * 150_000) + text("punycode")), "damaged"),
    "name of 150,000 prefixes": (lambda: weights(text("a." * 150_000 + "w") + tensor()), "longer than 500 characters"),
    "names of 250 prefixes": (
        lambda: weights(b"".join(text("a." * 240 + str(k)) + tensor() for k in range(5000))),
        "names of up to",
    ),
    "40,000 tensors": (lambda: weights(b"".join(text(str(k)) + tensor() for k in range(40_000))), "40,000 tensors"),
    "keys with one hash": (
        lambda: weights(b"".join(number(k * (2**61 - 1)) + b"N" for k in range(200_000))),
        "not a plain tensor",
    ),
    "a list copied a million times": (
        lambda: b"](" + b"N" * 100_000 + b"e\x85r\0\0\0\0" + (name("torch.Size") + b"j\0\0\0\0R") * 100_000,
        "too many steps",
    ),
    "20 million marks": (lambda: b"(" * 20_000_000, "too many steps"),
    "2^60 state dicts": (
        lambda: (
            b"}"
            + b"".join(
                b"r"
                + struct.pack("<I", d)
                + b"}("
                + b"".join(text(str(k)) + b"j" + struct.pack("<I", d) for k in range(1000))
                + b"u"
                for d in range(5)
            )
        ),
        "no state dict|not a plain tensor",
    ),
    "each element of a tensor": (lambda: call("__builtin__.set", tensor()), "damaged"),
    "a list in itself": (lambda: b"]q\0h\0a", "no state dict"),
    "a state dict in itself": (lambda: b"}q\0" + text("a") + b"h\0s", "no state dict|not a plain tensor"),
    "pickle of 40 MB": (lambda: text("a" * (40 << 20)), "larger than 33,554,432"),
    "STACK_GLOBAL by way of the memo": (
        lambda: b"U\2osq\0U\6systemq\1U\x0ctorch._utils\x94U\x12_rebuild_tensor_v2\x94h\0h\1\x93U\2id\x85R",
        "damaged",
    ),
    "INST": (lambda: b"(U\2idios\nsystem\n", "damaged"),
    "OBJ": (lambda: b"(" + name("torch.Size") + b"U\2ido", "damaged"),
    "an extension's code": (lambda: b"\x82\1", "damaged"),
    "a persistent ID as text": (lambda: b"Pos.system\n", "damaged"),
    "a bytearray of its own": (lambda: b"\x96\x08\0\0\0\0\0\0\0AAAAAAAA", "damaged"),
    "a state of a function": (lambda: name("torch.Size") + b"N}" + text("a") + text("os") + b"s\x86b", "damaged"),
    "a call of a dtype": (lambda: name("torch.float32") + b")R", "damaged"),
    "a pickle in a pickle": (
        lambda: call("pickle.loads", text("cos\nsystem\n(U\2idtR.")),
        "would have to run pickle.loads",
    ),
    "a dotted name": (lambda: b"ctorch\nload.__globals__\n", "would have to run torch.load.__globals__"),
    "a name of 100 kB": (lambda: b"c" + b"a" * 100_000 + b"\nb\n", "would have to run a{100}"),
    "a name with ESC": (lambda: b"c\x1b]0;x\x07\n\x1b[2J\n", r"run \\x1b\]0;x\\x07"),
    "a name that is not UTF-8": (lambda: b"c\xff\xfe\nb\n", "damaged"),
    "a tensor made by another function": (
        lambda: call(
            "torch._tensor._rebuild_from_type_v2", name("collections.OrderedDict") + name("torch.Tensor") + b")}"
        ),
        "damaged",
    ),
    "a tensor beyond its storage": (lambda: weights(text("w") + tensor(sizes=b"M\xe8\x03\x85")), "damaged"),
    "a tensor at a negative place": (lambda: weights(text("w") + tensor(offset=b"J\xff\xff\xff\xff")), "damaged"),
    "strides that overflow": (lambda: weights(text("w") + tensor(strides=number(2**62) + b"\x85")), "damaged"),
    "sizes that overflow": (
        lambda: weights(text("w") + tensor(sizes=b"(" + number(2**39) * 9 + b"t", strides=b"(" + b"K\0" * 9 + b"t")),
        "damaged",
    ),
    "2 elements 10^11 times": (
        lambda: weights(text("w") + tensor(sizes=number(10**11) + b"\x85", strides=b"K\0\x85")),
        "not a plain tensor",
    ),
    "sizes as text": (lambda: weights(text("w") + tensor(sizes=text("ab"))), "damaged"),
    "a tensor of no storage": (lambda: weights(text("w") + tensor(place=b"K\1")), "damaged"),
    "a storage that is not in the file": (lambda: weights(text("w") + tensor(storage("7"))), "damaged"),
    "a storage larger than its entry": (lambda: weights(text("w") + tensor(storage(count=b"M\xe8\x03"))), "damaged"),
    "a storage of 2^60 elements": (lambda: weights(text("w") + tensor(storage(count=number(2**60)))), "damaged"),
    "a storage as two types": (
        lambda: weights(text("a") + tensor() + text("b") + tensor(storage(kind="torch.IntStorage"))),
        "damaged",
    ),
    "a storage outside of its folder": (lambda: weights(text("w") + tensor(storage("../../etc/passwd"))), "damaged"),
}
# what makes the file, and the words of the error
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a broken checksum": (lambda f: changed(archive(f, GOOD), STORED["0"], b"\0" * 8), "damaged"),
    "data.pkl twice": (lambda f: archive(f, GOOD, more={"w/data.pkl": SYSTEM}), "one name"),
    "data.pkl in two folders": (lambda f: archive(f, GOOD, more={"v/data.pkl": SYSTEM}), "2 entries data.pkl"),
    "data.pkl in a folder below": (lambda f: zip_of(f, {"w/x/data.pkl": GOOD}), "0 entries data.pkl"),
    "an encrypted entry": (lambda f: flagged(archive(f, SYSTEM), 0x1), "would have to run os.system"),
    "an entry that is a patch": (
        lambda f: flagged(archive(f, SYSTEM), 0x20),
        "would have to run os.system|damaged|not a zip",
    ),
    "strong encryption": (lambda f: flagged(archive(f, SYSTEM), 0x40), "would have to run os.system|damaged|not a zip"),
    "another name in the local header": (
        lambda f: changed(archive(f, SYSTEM), b"w/data.pkl", b"w/data.txt"),
        "would have to run os.system",
    ),
    "no local header": (
        lambda f: changed(archive(f, GOOD), b"PK\3\4", b"PK\3\5"),
        "not a file of weights|MessagePack|damaged",
    ),
    "entries over each other": (lambda f: overlapping(f, 100), "declare"),
    "compressed entries": (lambda f: deflated(f), "declare|does not write such"),
    "a directory of 9 MB": (
        lambda f: archive(f, GOOD, more={f"w/{k:0>200}": b"" for k in range(36_000)}),
        "directory is too large",
    ),
    "7z": (lambda f: f.write_bytes(b"7z\xbc\xaf\x27\x1c\0\4" + bytes(200)), "is compressed"),
    "older: no storages": (lambda f: older(f, OLDER, b"]", b""), "bytes of some of its weights are not in it"),
    "older: too few bytes": (lambda f: older(f, OLDER, KEYS, struct.pack("<q", 2) + b"\0" * 4), "damaged"),
    "older: another count": (lambda f: older(f, OLDER, KEYS, struct.pack("<q", 10**12) + b"\0" * 8), "damaged"),
    "older: a storage listed twice": (
        lambda f: older(f, OLDER, b"](" + text("0") * 2 + b"e", (COUNTED) * 2),
        "not in it",
    ),
    "older: a storage of 3 TB": (
        lambda f: older(f, weights(text("w") + tensor(storage(count=number(10**12), part=b"N"))), KEYS, b""),
        "damaged",
    ),
    "older: storages of more than the file": (
        lambda f: older(
            f,
            weights(b"".join(text(str(k)) + tensor(storage(str(k), b"M\xe8\x03", part=b"N")) for k in range(1000))),
            b"]",
            b"\0" * 9000,
        ),
        "damaged",
    ),
    "older: a part beyond its storage": (
        lambda f: older(
            f,
            weights(text("w") + tensor(storage(part=b"(" + text("v") + b"K\1K\2t"))),
            KEYS,
            COUNTED,
        ),
        "damaged",
    ),
    "older: storages whose comparison takes 2^60 steps": (
        lambda f: older(f, OLDER, b"](" + doubled(60, b"K\1") + doubled(60, b"K\1") + b"e", COUNTED),
        "not in it",
    ),
    "older: a text of 4 GiB": (lambda f: older(f, b"X\xff\xff\xff\xff", b"]", b""), "damaged"),
    "older: os.system": (lambda f: older(f, SYSTEM, b"]", b""), "would have to run os.system"),
    "older: os.system in the list of storages": (lambda f: older(f, OLDER, SYSTEM, b""), "would have to run os.system"),
}

"""Storage for torch.distributed.checkpoint (DCP): durable, verified, and nothing in it executed.

    import torch.distributed.checkpoint as dcp
    import perdure.dcp

    dcp.save(state_dict, storage_writer=perdure.dcp.StorageWriter("runs/x/step-100"))
    dcp.load(state_dict, storage_reader=perdure.dcp.StorageReader("runs/x/step-100"))

They go wherever DCP takes a writer or a reader: save, async_save, load, with the planners and the resharding of DCP. The
directory is one of DCP's own: stock dcp.load and dcp_to_torch_save read what the writer wrote, and the reader reads what
stock DCP wrote.

What DCP's file-system storage lacks: the directory appears under its name when all of it is on the disk, or not at all; an
existing one is replaced as a whole; every byte that is read has its checksum compared; `.metadata` is parsed as data, and
what is no tensor only unpickled after it was found to be plain data.
"""

import collections
import dataclasses
import io
import os
import pickle
import uuid

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint import storage as dcp_storage
from torch.distributed.checkpoint.planner import LoadItemType, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from . import _core
from .errors import InvalidError
from .files import _path
from .tensors import DTYPES
from .values import encode

_STAGING = 64 << 20  # bytes of memory that a rank writes through


@dataclasses.dataclass
class _Place:
    """What the coordinator tells each rank: where its file goes."""

    folder: str
    name: str


class StorageWriter(dcp_storage.StorageWriter):
    """Writes a checkpoint of all ranks into a new directory `path`, which may be given to DCP as `checkpoint_id` instead.

    Each rank writes one file, fsynced; the coordinator writes `.metadata` last and renames the directory. So all ranks must
    see the same file system. Whatever ends the save before that, on any rank, leaves what was at the path before, and a
    hidden directory beside it that the next save to that path removes.

    `overwrite`: replaces a checkpoint that is there, as DCP's own writer does; without it, that is an InvalidError.

    Ranks must be coordinated: dcp.save(use_collectives=False) is an InvalidError. One save at a time.
    """

    def __init__(self, path=None, overwrite: bool = True):
        super().__init__()
        self._overwrite = overwrite
        self._path = None
        self.reset(path)

    def reset(self, checkpoint_id=None) -> None:
        if checkpoint_id is not None:
            self._path = _path(checkpoint_id)
        self._directory = None  # of the coordinator; of a save that failed, it is removed here
        self._save_id = str(uuid.uuid4())

    def set_up_storage_writer(self, is_coordinator: bool, *args, use_collectives: bool = True, **kwargs) -> None:
        if not use_collectives:
            raise InvalidError(
                "perdure.dcp.StorageWriter makes the directory visible when all ranks are done, so they must be "
                "coordinated: leave out use_collectives=False"
            )
        if self._path is None:
            raise InvalidError("where to? give StorageWriter a path, or dcp.save a checkpoint_id")

    def prepare_local_plan(self, plan):
        return plan

    def prepare_global_plan(self, plans):
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        self._directory = _core.NewDirectory(self._path, self._overwrite)
        return [
            dataclasses.replace(plan, storage_data=_Place(self._directory.path, f"__{rank}_0.distcp"))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan, planner) -> Future:
        place = plan.storage_data
        items = [_rank_item(item, planner) for item in plan.items]
        results = []
        if items:
            written = _core.write_rank_file(place.folder, place.name, items, _STAGING)
            for item, (offset, length) in zip(plan.items, written, strict=True):
                info = filesystem._StorageInfo(place.name, offset, length)
                results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=info))
        done = Future()
        done.set_result(results)
        return done

    def finish(self, metadata, results) -> None:
        metadata.version = filesystem.CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for of_rank in results for result in of_rank}
        metadata.storage_meta = self.storage_meta()
        self._directory.write(".metadata", pickle.dumps(metadata, protocol=4))
        self._directory.commit()
        self._directory = None

    def storage_meta(self):
        return md.StorageMeta(checkpoint_id=self._path, save_id=self._save_id)

    @property
    def checkpoint_id(self) -> str:
        return self._path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        return filesystem.FileSystemWriter.validate_checkpoint_id(checkpoint_id)

    def __getstate__(self):  # for async_save with a process
        return {**self.__dict__, "_directory": None}


def _rank_item(item, planner):
    name = item.index.fqn
    data = planner.resolve_data(item)
    if item.type is WriteItemType.BYTE_IO:
        return _core.RankItem(name, encode(bytes(data.getbuffer())), True)
    return _core.RankItem(name, encode(data.detach()), False)


class StorageReader(dcp_storage.StorageReader):
    """Reads a checkpoint directory that StorageWriter or DCP's own writer wrote.

    Each rank reads the pieces that it needs, each once and in the order of the files, straight into the tensors of the
    state where they lie in one run on the CPU, and compares their checksums. When that fails, some of them may have been
    written.

    Raises CorruptionError naming file, offset and tensor; UnsupportedError for what is more than plain data, which
    DCP's own reader would execute, and for streams that an extension transformed; NotFoundError; IoError.
    """

    def __init__(self, path=None):
        super().__init__()
        self._path = None
        self.reset(path)

    def reset(self, checkpoint_id=None) -> None:
        if checkpoint_id is not None:
            self._path = _path(checkpoint_id)
        self._parts = None
        self._load_id = str(uuid.uuid4())

    def read_metadata(self, *args, rank=None, **kwargs):
        """`rank`: of what was saved without coordination, where each rank has a metadata file of its own."""
        if self._path is None:
            raise InvalidError("from where? give StorageReader a path, or dcp.load a checkpoint_id")
        own = f"__{rank}.metadata"
        has_own = rank is not None and os.path.exists(os.path.join(self._path, own))
        self._parts = _core.DcpParts(self._path, own if has_own else ".metadata")
        self._places = {}  # MetadataIndex: (item, chunk)
        self._dtypes = []  # by item
        files, entries, paths, storage = self._parts.files, {}, {}, {}
        for number, item in enumerate(self._parts.items):
            entries[item.name] = _entry(item)
            self._dtypes.append(DTYPES[item.dtype])
            paths[item.name] = tuple(key.scalar() for key in item.path)
            for n, chunk in enumerate(item.chunks):
                index = md.MetadataIndex(item.name, chunk.offsets if item.is_tensor else None)
                place = chunk.place
                self._places[index] = number, n
                storage[index] = filesystem._StorageInfo(files[place.file], place.offset, place.length)
        meta = md.StorageMeta(checkpoint_id=self._path, load_id=self._load_id)
        return md.Metadata(entries, planner_data=paths, storage_data=storage, storage_meta=meta)

    def set_up_storage_reader(self, metadata, is_coordinator: bool, *args, **kwargs) -> None:
        pass

    def prepare_local_plan(self, plan):
        return plan

    def prepare_global_plan(self, plans):
        return plans

    def read_data(self, plan, planner) -> Future:
        tensors = []
        for request in plan.items:
            if request.type is LoadItemType.BYTE_IO:
                number, _ = self._places[request.storage_index]
                planner.load_bytes(request, io.BytesIO(self._parts.read_value(number)))
            else:
                tensors.append(self._target(request, planner))
        self._parts.read_boxes([target.box for target in tensors])
        for target in tensors:
            if target.buffer is not target.tensor:
                target.tensor.copy_(target.buffer)
            planner.commit_tensor(target.request, target.tensor)
        done = Future()
        done.set_result(None)
        return done

    def _target(self, request, planner):
        tensor = planner.resolve_tensor(request).detach()
        number, chunk = self._places[request.storage_index]
        sizes = list(request.lengths)
        if list(tensor.shape) != sizes:
            raise InvalidError(
                f"{request.storage_index.fqn}: the planner wants {sizes} of it, for a tensor of {list(tensor.shape)}"
            )
        dtype = self._dtypes[number]
        fits = tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype == dtype and not _is_lazy(tensor)
        buffer = tensor if fits else torch.empty(sizes, dtype=dtype)
        box = (number, chunk, list(request.storage_offsets), sizes, buffer.data_ptr())
        return _Target(request, tensor, buffer, box)

    @property
    def checkpoint_id(self) -> str:
        return self._path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        return filesystem.FileSystemReader.validate_checkpoint_id(checkpoint_id)


_Target = collections.namedtuple("_Target", "request tensor buffer box")


def _is_lazy(tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()


def _entry(item):
    if not item.is_tensor:
        return md.BytesStorageMetadata()
    chunks = [md.ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in item.chunks]
    return md.TensorStorageMetadata(md.TensorProperties(dtype=DTYPES[item.dtype]), torch.Size(item.shape), chunks)

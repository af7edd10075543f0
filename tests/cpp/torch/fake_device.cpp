#include "fake_device.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_native_batch_norm_legit.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace {

constexpr auto kFake = c10::DeviceType::PrivateUse1;
constexpr int kDevices = 2;
constexpr size_t kStreamsPerDevice = 32;

std::atomic<unsigned long long> copies_to_cpu{0};
std::atomic<unsigned long long> pinned_bytes{0};

// ---------------------------------------------------------------------------------- memory

// Device memory is one file mapped twice. Tensors have the address of the mapping that nobody may
// access; the device itself goes through the other one.
struct Allocation {
  explicit Allocation(size_t bytes) : size(bytes) {
    const int file = memfd_create("fake_device", MFD_CLOEXEC);
    TORCH_CHECK(file >= 0 && ftruncate(file, static_cast<off_t>(size)) == 0, "fake: no memory");
    address = static_cast<char*>(mmap(nullptr, size, PROT_NONE, MAP_SHARED, file, 0));
    shadow = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    close(file);
    TORCH_CHECK(address != MAP_FAILED && shadow != MAP_FAILED, "fake: no memory");
    std::memset(shadow, 0xff, size);  // As on a GPU, what is not written yet is not zero.
  }
  ~Allocation() {
    munmap(address, size);
    munmap(shadow, size);
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  size_t size;
  char* address;
  char* shadow;
  int device = 0;
};

// The blocks of memory in use, by address. Like every global here that has a destructor it is never
// destroyed, since tensors may be freed while the process exits.
template <typename Block>
class Blocks {
 public:
  void add(const void* address, Block block) {
    const std::lock_guard lock(mutex_);
    blocks_.emplace(static_cast<const char*>(address), std::move(block));
  }

  void remove(const void* address) {
    const std::lock_guard lock(mutex_);
    blocks_.erase(static_cast<const char*>(address));
  }

  // The last block that starts at `address` or below, null if none does.
  Block find(const void* address) {
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(static_cast<const char*>(address));
    return after == blocks_.begin() ? Block{} : std::prev(after)->second;
  }

 private:
  std::mutex mutex_;
  std::map<const char*, Block> blocks_;
};

Blocks<std::shared_ptr<Allocation>>& allocations = *new Blocks<std::shared_ptr<Allocation>>;
Blocks<const char*>& pinned_ends = *new Blocks<const char*>;

std::shared_ptr<Allocation> find_allocation(const void* address) {
  auto found = allocations.find(address);
  const bool inside = found && address < found->address + found->size;
  TORCH_CHECK(inside, "fake: ", address, " is not memory of a fake device");
  return found;
}

thread_local int current_device = 0;

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(kFake, static_cast<c10::DeviceIndex>(current_device));
    if (bytes == 0) return {nullptr, device};
    auto allocation = std::make_shared<Allocation>(bytes);
    allocation->device = current_device;
    void* address = allocation->address;
    allocations.add(address, std::move(allocation));
    return {address, address, [](void* freed) { allocations.remove(freed); }, device};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    TORCH_CHECK(false, "fake: ", bytes, " bytes from ", from, " to ", to, " outside of a stream");
  }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    pinned_bytes += bytes;
    void* address = c10::alloc_cpu(bytes);
    if (address != nullptr) pinned_ends.add(address, static_cast<char*>(address) + bytes);
    return {address, address, &release, c10::DeviceType::CPU};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  static void release(void* address) {
    pinned_ends.remove(address);
    c10::free_cpu(address);
  }
};

DeviceAllocator& device_allocator = *new DeviceAllocator;
PinnedAllocator& pinned_allocator = *new PinnedAllocator;

// --------------------------------------------------------------------------------- streams

using Work = std::function<void()>;

struct Queue {
  std::deque<Work> pending;
  uint64_t enqueued = 0;
  uint64_t done = 0;
};

// What an event is: the state of a stream in which it has done its first `ticket` pieces of work.
struct Point {
  Queue* queue;
  uint64_t ticket;
};

// All streams of all devices, each with a thread that does its work in order. One mutex guards all
// of them, which is slow and simple.
class Machine {
 public:
  Machine() {
    for (auto& queues : queues_) start_queue(queues);
  }

  // Work still pending when the process exits is dropped, but no thread may be at work while the
  // libraries that it uses are torn down. A forked child has none of the threads.
  void shut_down() {
    if (getpid() != process_) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (auto& worker : workers_) worker.join();
  }

  Queue* queue(c10::Stream stream) {
    const std::lock_guard lock(mutex_);
    return queues_.at(static_cast<size_t>(stream.device_index()))
        .at(static_cast<size_t>(stream.id()))
        .get();
  }

  // A stream other than the default one. As in CUDA they are handed out again after a while.
  c10::Stream new_stream(c10::Device device) {
    const std::lock_guard lock(mutex_);
    const auto index = static_cast<size_t>(device.index());
    const size_t id = 1 + handed_out_.at(index)++ % kStreamsPerDevice;
    auto& queues = queues_.at(index);
    if (id == queues.size()) start_queue(queues);
    return c10::Stream(c10::Stream::UNSAFE, device, static_cast<c10::StreamId>(id));
  }

  Point enqueue(Queue* queue, Work work) {
    drop_finished();
    const std::lock_guard lock(mutex_);
    queue->pending.push_back(std::move(work));
    changed_.notify_all();
    return {queue, ++queue->enqueued};
  }

  Point end_of(Queue* queue) {
    const std::lock_guard lock(mutex_);
    return {queue, queue->enqueued};
  }

  bool reached(const Point& point) {
    const std::lock_guard lock(mutex_);
    return point.queue->done >= point.ticket;
  }

  // An error of work done in the meantime comes out here, as with a GPU. A thread that still waits
  // while the process exits does so to its end: there is nothing that it could go on with.
  void wait(const Point& point) {
    std::exception_ptr error;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return point.queue->done >= point.ticket; });
      std::swap(error, error_);
    }
    drop_finished();
    if (error) std::rethrow_exception(error);
  }

  void wait_device(size_t device) {
    std::vector<Point> ends;
    {
      const std::lock_guard lock(mutex_);
      for (auto& queue : queues_.at(device)) ends.push_back({queue.get(), queue->enqueued});
    }
    for (const auto& end : ends) wait(end);
  }

  // The two below are work itself: they run on a thread of a stream.
  void stall_until(const Point& point) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopping_ || point.queue->done >= point.ticket; });
  }

  void stall_for(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [&] { return stopping_; });
  }

 private:
  using Queues = std::vector<std::unique_ptr<Queue>>;

  void start_queue(Queues& queues) {
    queues.push_back(std::make_unique<Queue>());
    workers_.emplace_back([this, queue = queues.back().get()] { run(*queue); });
  }

  void run(Queue& queue) {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopping_ || !queue.pending.empty(); });
      if (stopping_) return;
      Work work = std::move(queue.pending.front());
      queue.pending.pop_front();
      lock.unlock();
      std::exception_ptr error;
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) error_ = error;
      finished_.push_back(std::move(work));
      ++queue.done;
      changed_.notify_all();
    }
  }

  // Finished work is destroyed on a thread that uses the device, never on one of a stream, because
  // freeing a tensor can need the interpreter lock, whose holder may be waiting for the stream.
  void drop_finished() {
    std::vector<Work> dropped;
    const std::lock_guard lock(mutex_);
    std::swap(dropped, finished_);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  pid_t process_ = getpid();
  std::array<Queues, kDevices> queues_;
  std::array<size_t, kDevices> handed_out_{};
  std::vector<std::thread> workers_;
  std::vector<Work> finished_;
  std::exception_ptr error_;
};

Machine& machine = *new Machine;

const struct AtExit {
  ~AtExit() { machine.shut_down(); }
} at_exit;

thread_local std::array<c10::StreamId, kDevices> current_streams{};

c10::Device with_index(c10::Device device) {
  return device.has_index()
             ? device
             : c10::Device(device.type(), static_cast<c10::DeviceIndex>(current_device));
}

c10::Stream current_stream(c10::Device device) {
  device = with_index(device);
  const auto id = current_streams.at(static_cast<size_t>(device.index()));
  return c10::Stream(c10::Stream::UNSAFE, device, id);
}

Queue* current_queue(c10::Device device) { return machine.queue(current_stream(device)); }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kFake; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override {
    return {kFake, static_cast<c10::DeviceIndex>(current_device)};
  }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "fake: there is no device ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Stream getStream(c10::Device device) const override { return current_stream(device); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, with_index(device));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return machine.new_stream(with_index(device));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return machine.new_stream(with_index(device));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = current_stream(stream.device());
    current_streams.at(static_cast<size_t>(stream.device_index())) = stream.id();
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override {
    return machine.reached(machine.end_of(machine.queue(stream)));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    machine.wait(machine.end_of(machine.queue(stream)));
  }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    machine.wait_device(static_cast<size_t>(device < 0 ? current_device : device));
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex,
              c10::EventFlag) const override {
    if (*event == nullptr) *event = new Point;
    *static_cast<Point*>(*event) = machine.end_of(machine.queue(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    const auto point = *static_cast<Point*>(event);
    machine.enqueue(machine.queue(stream), [point] { machine.stall_until(point); });
  }
  bool queryEvent(void* event) const override {
    return machine.reached(*static_cast<Point*>(event));
  }
  void synchronizeEvent(void* event) const override { machine.wait(*static_cast<Point*>(event)); }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Point*>(event);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  // Kernels run on the CPU.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* address) const override {
    return address < static_cast<const void*>(pinned_ends.find(address));
  }
  c10::Device getDeviceFromPtr(void* address) const override {
    return {kFake, static_cast<c10::DeviceIndex>(find_allocation(address)->device)};
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const c10::DeviceGuard guard(storage.device());
    auto grown = device_allocator.allocate(bytes);
    if (const size_t kept = std::min(bytes, storage.nbytes()); kept > 0) {
      machine.enqueue(current_queue(storage.device()),
                      [to = find_allocation(grown.get()), from = find_allocation(storage.data()),
                       kept] { std::memcpy(to->shadow, from->shadow, kept); });
    }
    storage.set_data_ptr_noswap(std::move(grown));
    storage.set_nbytes(bytes);
  }
};

Hooks& hooks = *new Hooks;

// --------------------------------------------------------------------------------- kernels

// True on a thread whose copies belong to a kernel that runs on the CPU in place of the device.
thread_local bool in_kernel = false;

// The same elements as a CPU tensor that reads and writes them where they really are. It keeps the
// memory alive without keeping `tensor` itself.
at::Tensor as_cpu(const at::Tensor& tensor) {
  auto* address = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  std::function<void(void*)> keep;
  if (tensor.is_privateuseone()) {
    auto allocation = find_allocation(address);
    address = allocation->shadow + (address - allocation->address);
    keep = [allocation](void*) {};
  } else {
    keep = [storage = tensor.storage()](void*) {};
  }
  auto cpu = at::from_blob(address, tensor.sizes(), tensor.strides(), keep, tensor.dtype());
  cpu._set_conj(tensor.is_conj());
  cpu._set_neg(tensor.is_neg());
  return cpu;
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.dtype() == b.dtype() && a.sizes() == b.sizes() && a.is_contiguous() &&
         b.is_contiguous() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  if (!to.is_privateuseone() && !in_kernel) ++copies_to_cpu;
  auto* queue = current_queue(from.is_privateuseone() ? from.device() : to.device());
  auto* other = to.is_privateuseone() ? current_queue(to.device()) : queue;
  if (other != queue) {
    machine.enqueue(queue, [end = machine.end_of(other)] { machine.stall_until(end); });
  }
  auto copied = machine.enqueue(queue, [from = as_cpu(from), to = as_cpu(to)]() mutable {
    if (same_layout(from, to)) {
      std::memcpy(to.data_ptr(), from.data_ptr(), from.nbytes());
    } else {
      to.copy_(from);
    }
  });
  if (other != queue) machine.enqueue(other, [copied] { machine.stall_until(copied); });
  if (!non_blocking) machine.wait(copied);
  return to;
}

void grow_storage(const at::Tensor& tensor) {
  const auto bytes = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.dtype().itemsize(), tensor.storage_offset());
  if (tensor.numel() > 0 && bytes > tensor.storage().nbytes()) {
    hooks.resizePrivateUse1Bytes(tensor.storage(), bytes);
  }
}

const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef size,
                         std::optional<at::MemoryFormat> format) {
  if (tensor.sizes() != size) tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format) tensor.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  grow_storage(tensor);
  return tensor;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, /*non_blocking=*/false);
}

at::Tensor& set_to_storage(at::Tensor& tensor, at::Storage source, int64_t offset,
                           at::IntArrayRef size, at::IntArrayRef stride) {
  at::native::checkSetStorage<int64_t>(tensor, std::move(source), offset, size, stride);
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_offset(offset);
  if (stride.data() != nullptr) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  grow_storage(tensor);
  return tensor;
}

at::Tensor& set_to_whole_storage(at::Tensor& tensor, at::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / tensor.dtype().itemsize());
  return set_to_storage(tensor, std::move(source), 0, {size}, {});
}

at::Tensor& set_to_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set_to_storage(tensor, source.storage(), source.storage_offset(), source.sizes(),
                        source.strides());
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &device_allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor& fill(at::Tensor& tensor, const at::Scalar& value) {
  if (tensor.numel() == 0) return tensor;
  machine.enqueue(current_queue(tensor.device()),
                  [cpu = as_cpu(tensor), value]() mutable { cpu.fill_(value); });
  return tensor;
}

at::Tensor& zero(at::Tensor& tensor) { return fill(tensor, 0); }

at::Scalar read_scalar(const at::Tensor& tensor) {
  if (!in_kernel) ++copies_to_cpu;
  machine.wait(machine.end_of(current_queue(tensor.device())));
  return as_cpu(tensor).item();
}

// Every other kernel runs at once on copies in CPU memory, when the current stream has come to it.
void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (c10::DeviceIndex device = 0; device < kDevices; ++device) {
    machine.wait(machine.end_of(current_queue({kFake, device})));
  }
  const bool outer = std::exchange(in_kernel, true);
  const auto restore = [&](void*) { in_kernel = outer; };
  const std::unique_ptr<void, decltype(restore)> restored(&in_kernel, restore);
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

// The fallback needs the operator whose schema says that the running statistics change.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& variance, bool training, double momentum, double eps) {
  if (!mean || !mean->defined()) {
    return at::_native_batch_norm_legit(input, weight, bias, training, momentum, eps);
  }
  at::Tensor changed_mean = *mean;
  at::Tensor changed_variance = variance.value();
  return at::_native_batch_norm_legit(input, weight, bias, changed_mean, changed_variance, training,
                                      momentum, eps);
}

// Whether `tensor.set_data(data)` may be: torch says no to a device that it does not know, and
// Module::to() needs it to move a parameter to the device in place.
bool can_take_data(const at::Tensor& tensor, const at::Tensor& data) {
  return tensor.layout() == at::kStrided && data.layout() == at::kStrided;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("set_.source_Storage", set_to_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_to_storage);
  m.impl("set_.source_Tensor", set_to_tensor);
  m.impl("resize_", resize);
  m.impl("fill_.Scalar", fill);
  m.impl("zero_", zero);
  m.impl("_local_scalar_dense", read_scalar);
  // Work keeps the memory that it uses, so there is nothing to record.
  m.impl("record_stream", [](at::Tensor&, at::Stream) {});
  m.impl("native_batch_norm", batch_norm);
  m.impl("_has_compatible_shallow_copy_type", can_take_data);
  // Where a device has no kernel for these, torch composes them of others, and the last bits
  // differ.
  for (const char* op : {"mse_loss", "native_layer_norm", "native_layer_norm_backward"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
  // Views do not look at the memory.
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
}

// Copies see to the conjugate and negative bits themselves; torch's way of resolving them is a
// copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

const bool registered = [] {
  c10::register_privateuse1_backend("fake");
  c10::SetAllocator(kFake, &device_allocator);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

}  // namespace

extern "C" {

void fake_device_delay(int milliseconds) {
  machine.enqueue(current_queue({kFake, 0}),
                  [milliseconds] { machine.stall_for(std::chrono::milliseconds(milliseconds)); });
}

unsigned long long fake_device_copies(void) { return copies_to_cpu; }

unsigned long long fake_device_pinned_bytes(void) { return pinned_bytes; }

}  // extern "C"

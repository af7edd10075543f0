// A PyTorch device that stands for a GPU in tests, for machines that have none. It has the two
// properties of a GPU that code copying tensors can get wrong: the CPU cannot read its memory (an
// access at data_ptr() is a segmentation fault), and work on it runs later, in the order of a
// stream. Loading the library that holds it makes torch.device("fake:0") and "fake:1" usable.

#pragma once

extern "C" {

// Puts a sleep into the current stream of device 0: work enqueued after it there stays pending for
// so long.
__attribute__((visibility("default"))) void fake_device_delay(int milliseconds);

// How many times a tensor was copied, or a scalar read, from a fake device to the CPU. Kernels,
// which the double runs on the CPU, do not count.
__attribute__((visibility("default"))) unsigned long long fake_device_copies(void);

// How many bytes of pinned memory were asked for, freed ones included.
__attribute__((visibility("default"))) unsigned long long fake_device_pinned_bytes(void);

}  // extern "C"

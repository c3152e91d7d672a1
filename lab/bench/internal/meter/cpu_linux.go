package meter

import (
	"syscall"
	"time"
	"unsafe"
)

// cpuTime reads the clock of another process: its number is made from the PID
// (clock_getcpuclockid(3)), and CPUCLOCK_SCHED is the sum over its threads.
// /proc/PID/stat counts in ticks of 10 ms, too coarse for short windows.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2
	var ts syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(^pid<<3|sched), uintptr(unsafe.Pointer(&ts)), 0) //nolint:gosec // as the call wants it
	if errno == syscall.ESRCH || errno == syscall.EINVAL {
		return 0, nil // it has ended
	}
	if errno != 0 {
		return 0, errno
	}
	return time.Duration(ts.Nano()), nil
}

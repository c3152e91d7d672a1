package edgetest

import "syscall"

// withParent has the kernel end the child when this process dies.
func withParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

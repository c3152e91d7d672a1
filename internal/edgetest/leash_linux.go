package edgetest

import "syscall"

// leash has the kernel end the child when this process dies, and keeps ^C on
// the terminal from it: Close stops it, once.
func leash() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

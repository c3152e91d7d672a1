//go:build !linux

package main

import "syscall"

// leash gives a child a process group of its own.
func leash() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// Package meter reads the CPU time, memory and context switches of a process
// and its descendants, and keeps latency histograms.
//
//	tree := meter.Tree(pid)
//	before, err := meter.CPU(tree)
//	...
//	after, err := meter.CPU(tree)
//
// It reads /proc, as Linux has it. A process that has ended counts for nothing.
package meter

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// Tree lists pid and its descendants, parents before children.
func Tree(pid int) []int {
	kids := map[int][]int{}
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		p, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue // it has just ended
		}
		if parent, ok := parentOf(stat); ok {
			kids[parent] = append(kids[parent], p)
		}
	}
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, kids[tree[i]]...)
	}
	return tree
}

// parentOf finds the parent in a line of /proc/PID/stat (proc_pid_stat(5)).
// The name of the command is in parentheses and may hold spaces and
// parentheses itself, so the fields are counted from its last one.
func parentOf(stat []byte) (pid int, ok bool) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0, false
	}
	pid, err := strconv.Atoi(fields[1])
	return pid, err == nil
}

// CPU returns the user and system time that the processes have used, at
// nanosecond resolution. The error is errors.ErrUnsupported where the system
// does not tell it of other processes.
func CPU(pids []int) (total time.Duration, err error) {
	for _, p := range pids {
		used, err := cpuTime(p)
		if err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", p, err)
		}
		total += used
	}
	return total, nil
}

// Memory returns the processes' proportional set size in bytes: what is shared
// counts in parts for those that share it.
func Memory(pids []int) (total int64) {
	for _, p := range pids {
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p))
		total += sumOf(rollup, "Pss:", " kB") << 10
	}
	return total
}

// Switches returns the processes' voluntary and involuntary context switches.
func Switches(pids []int) (n int64) {
	for _, p := range pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p))
		for _, t := range tasks {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", p, t.Name()))
			n += sumOf(status, "voluntary_ctxt_switches:", "") + sumOf(status, "nonvoluntary_ctxt_switches:", "")
		}
	}
	return n
}

// sumOf adds the numbers of the lines that start with name.
func sumOf(text []byte, name, unit string) (sum int64) {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(value)), unit), 10, 64)
			sum += n
		}
	}
	return sum
}

// Micros returns d in microseconds, to a tenth.
func Micros(d time.Duration) float64 { return math.Round(float64(d)/100) / 10 }

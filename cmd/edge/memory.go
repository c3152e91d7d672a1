package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

const (
	// memoryShare of a control group's limit is for the Go runtime. The rest is
	// for what it does not count: the binary, and the kernel's socket buffers,
	// which are charged to the group, too.
	memoryShare = 0.9
	// maxCgroupFile bounds what is read of a file below /proc and /sys.
	maxCgroupFile = 64 << 10
	// maxCgroupDepth bounds the groups above ours that are asked.
	maxCgroupDepth = 64
	// unlimited is where cgroup v1 begins to mean no limit: the largest number
	// of pages, which no machine has.
	unlimited = math.MaxInt64 / 2
)

// limitMemory has the garbage collector work harder before the kernel kills the
// process for the limit of its control group, which Go does not know of. A
// $GOMEMLIMIT, also one that says off, is left alone.
func limitMemory(ctx context.Context, log *slog.Logger) {
	if _, set := os.LookupEnv("GOMEMLIMIT"); set {
		return
	}
	limitMemoryTo(ctx, log, os.DirFS("/"))
}

// limitMemoryTo is limitMemory by what root, the root directory, says.
func limitMemoryTo(ctx context.Context, log *slog.Logger, root fs.FS) {
	limit, where := cgroupLimit(root)
	if limit == 0 {
		return
	}
	goal := int64(float64(limit) * memoryShare)
	debug.SetMemoryLimit(goal)
	log.LogAttrs(ctx, slog.LevelInfo, "memory limit", slog.Int64("bytes", goal), slog.Int64("cgroup_bytes", limit), slog.String("cgroup", where))
}

// cgroupLimit is the tightest memory limit of the control groups that this
// process is in, and the file that says so; 0 when there is none. root is the
// root directory. In a container the group's own path may lie outside of what
// is mounted; then the mount's root is what is known of it (cgroup_namespaces(7)).
func cgroupLimit(root fs.FS) (limit int64, where string) {
	groups, err := readSmall(root, "proc/self/cgroup")
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(groups) {
		hierarchy, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		var mounts []string
		file := "memory.max"
		switch {
		case hierarchy == "0" && controllers == "": // v2, alone or beside v1
			mounts = []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}
		case slices.Contains(strings.Split(controllers, ","), "memory"):
			mounts, file = []string{"sys/fs/cgroup/memory"}, "memory.limit_in_bytes"
		}
		for _, mount := range mounts {
			if n, at := tightest(root, mount, group, file); n > 0 && (limit == 0 || n < limit) {
				limit, where = n, at
			}
		}
	}
	return limit, where
}

// tightest asks group and all groups above it.
func tightest(root fs.FS, mount, group, file string) (limit int64, where string) {
	group = path.Clean("/" + group)
	for range maxCgroupDepth {
		name := path.Join(mount, group, file)
		if text, err := readSmall(root, name); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && n > 0 && n < unlimited && (limit == 0 || n < limit) {
				limit, where = n, "/"+name
			}
		}
		if group == "/" {
			break
		}
		group = path.Dir(group)
	}
	return limit, where
}

// errLarge is a file that no kernel wrote.
var errLarge = errors.New("larger than any of the kernel's")

func readSmall(root fs.FS, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxCgroupFile+1))
	if err == nil && len(text) > maxCgroupFile {
		err = errLarge
	}
	return string(text), err
}

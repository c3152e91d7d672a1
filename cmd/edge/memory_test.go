package main

import (
	"bytes"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"
)

// files is a root directory, from the content of what is in it.
func files(contents map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range contents {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func TestTightestLimitOfAllControlGroupsCounts(t *testing.T) {
	const v2, v1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"
	deep := strings.Repeat("/g", 200)
	for what, c := range map[string]struct {
		files map[string]string
		limit int64
		where string
	}{
		"no control groups": {map[string]string{"etc/hosts": ""}, 0, ""},
		"v2, own group": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/edge.service\n", v2 + "system.slice/edge.service/memory.max": "1073741824\n",
			v2 + "system.slice/memory.max": "max\n",
		}, 1 << 30, "/" + v2 + "system.slice/edge.service/memory.max"},
		"v2, a group above is tighter": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", v2 + "a/b/memory.max": "2000\n", v2 + "a/memory.max": "1000\n", v2 + "memory.max": "3000\n",
		}, 1000, "/" + v2 + "a/memory.max"},
		"v2 in a container": {map[string]string{"proc/self/cgroup": "0::/\n", v2 + "memory.max": "5000"}, 5000, "/" + v2 + "memory.max"},
		"v2 in a container that sees its path outside": {map[string]string{
			"proc/self/cgroup": "0::/kubepods/pod1/c1\n", v2 + "memory.max": "6000\n",
		}, 6000, "/" + v2 + "memory.max"},
		"v2, moved out of its name space": {map[string]string{"proc/self/cgroup": "0::/../x\n", v2 + "x/memory.max": "70\n"}, 70, "/" + v2 + "x/memory.max"},
		"v2 without a limit":              {map[string]string{"proc/self/cgroup": "0::/a\n", v2 + "a/memory.max": "max\n"}, 0, ""},
		"v1": {map[string]string{
			"proc/self/cgroup": "12:cpu,cpuacct:/d\n7:memory:/d\n", v1 + "d/memory.limit_in_bytes": "800\n", v1 + "memory.limit_in_bytes": "9223372036854771712\n",
		}, 800, "/" + v1 + "d/memory.limit_in_bytes"},
		"v1 without a limit": {map[string]string{"proc/self/cgroup": "7:memory:/\n", v1 + "memory.limit_in_bytes": "9223372036854771712\n"}, 0, ""},
		"both, v1 has the memory": {map[string]string{
			"proc/self/cgroup": "7:x,memory:/d\n0::/d\n", v1 + "d/memory.limit_in_bytes": "900\n", v2 + "unified/d/memory.max": "max\n",
		}, 900, "/" + v1 + "d/memory.limit_in_bytes"},
		"no numbers": {map[string]string{
			"proc/self/cgroup": "nonsense\n0::/a/b/c\n0\n::\n", v2 + "a/b/c/memory.max": "many\n", v2 + "a/b/memory.max": "-5\n",
			v2 + "a/memory.max": "0\n", v2 + "memory.max": "99999999999999999999\n",
		}, 0, ""},
		"too large to be the kernel's": {map[string]string{"proc/self/cgroup": "0::/\n" + strings.Repeat("x", maxCgroupFile), v2 + "memory.max": "5\n"}, 0, ""},
		"deeper than anybody nests":    {map[string]string{"proc/self/cgroup": "0::" + deep + "\n", v2 + "memory.max": "5\n", v2 + deep[1:] + "/memory.max": "6\n"}, 6, "/" + v2 + deep[1:] + "/memory.max"},
	} {
		if limit, where := cgroupLimit(files(c.files)); limit != c.limit || where != c.where {
			t.Errorf("%s: got %d by %q, want %d by %q", what, limit, where, c.limit, c.where)
		}
	}
}

func TestMemoryLimitOfTheEnvironmentIsLeftAlone(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	t.Setenv("GOMEMLIMIT", "off")
	var logs bytes.Buffer
	limitMemory(t.Context(), slog.New(slog.NewTextHandler(&logs, nil)))
	if now := debug.SetMemoryLimit(-1); now != before || logs.Len() > 0 {
		t.Errorf("the limit is %d, was %d; log %q", now, before, logs.String())
	}
}

func TestMemoryLimitIsNineTenthsOfTheControlGroups(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	var logs bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logs, nil))
	limitMemoryTo(t.Context(), log, files(map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "10000000000\n"}))
	if now := debug.SetMemoryLimit(-1); now != 9_000_000_000 || strings.Count(logs.String(), "\n") != 1 || !strings.Contains(logs.String(), "bytes=9000000000 cgroup_bytes=10000000000") {
		t.Errorf("the limit is %d; log %q", now, logs.String())
	}
	debug.SetMemoryLimit(math.MaxInt64)
	logs.Reset()
	limitMemoryTo(t.Context(), log, files(nil))
	if now := debug.SetMemoryLimit(-1); now != math.MaxInt64 || logs.Len() > 0 {
		t.Errorf("without control groups the limit is %d; log %q", now, logs.String())
	}
}

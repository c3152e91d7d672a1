//go:build race

package upstream_test

const slowdown = 10 // of the race detector

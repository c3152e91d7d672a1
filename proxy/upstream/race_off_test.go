//go:build !race

package upstream_test

const slowdown = 1 // of the race detector

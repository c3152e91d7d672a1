//go:build !race

package main_test

// raceDetector says whether this test, and so the program under test, is built
// with the race detector.
const raceDetector = false

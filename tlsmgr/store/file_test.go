package store_test

import (
	"testing"

	"edge/tlsmgr/store/storetest"
)

func TestFileStoreKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return "file://" + t.TempDir()
	})
}

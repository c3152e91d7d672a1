package store_test

import (
	"testing"

	"edge/internal/acmelab"
	"edge/tlsmgr/store/storetest"
)

func TestGCSStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return acmelab.NewGCS(t, bucket).StoreURL(bucket, "some/prefix")
	})
}

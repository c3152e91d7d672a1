package store_test

import (
	"strconv"
	"sync/atomic"
	"testing"

	"edge/internal/acmelab"
	"edge/tlsmgr/store/storetest"
)

func TestAzureStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	azurite := acmelab.NewAzurite(t, bucket)
	var places atomic.Int32
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return azurite.StoreURL(bucket, "some/prefix/"+strconv.Itoa(int(places.Add(1))))
	})
}

package store_test

import (
	"testing"

	"edge/internal/acmelab"
	"edge/tlsmgr/store/storetest"
)

// Not parallel: what else runs would make heirs late.
func TestLeasesStandTorture(t *testing.T) {
	s3 := acmelab.NewS3(t, bucket)
	gcs := acmelab.NewGCS(t, bucket)
	for name, location := range map[string]func(t *testing.T) string{
		"File": func(t *testing.T) string { t.Helper(); return "file://" + t.TempDir() },
		"S3":   func(t *testing.T) string { t.Helper(); return s3.StoreURL(bucket, t.Name()) },
		"GCS":  func(t *testing.T) string { t.Helper(); return gcs.StoreURL(bucket, t.Name()) },
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Torture(t, location)
		})
	}
	t.Run("Azure", func(t *testing.T) {
		azurite := acmelab.NewAzurite(t, bucket)
		storetest.Torture(t, func(t *testing.T) string { t.Helper(); return azurite.StoreURL(bucket, t.Name()) })
	})
}

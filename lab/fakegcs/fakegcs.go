// Package fakegcs holds a second opinion. The driver of gs:// in tlsmgr/store is
// tested against a fake of our own, internal/acmelab.GCS, and two parts by one
// author may share an error. Here the same contract suite runs against
// fake-gcs-server, which others wrote and many use:
//
//	cd lab/fakegcs && go test ./...
//
// It is a module of its own because fake-gcs-server would raise the versions of
// what the product is built with.
package fakegcs

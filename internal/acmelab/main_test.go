package acmelab_test

import (
	"testing"

	"go.uber.org/goleak"

	"edge/internal/acmelab"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmelab.LeakedFunction))
}

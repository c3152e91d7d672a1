package acme

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPollWaitsLongerEachTimeButNotForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, looks := time.Now(), 0
		err := poll(t.Context(), pollTimeout, func(context.Context) (bool, time.Duration, error) {
			looks++
			return false, 0, nil
		})
		if took := time.Since(began); !errors.Is(err, errUndecided) || took != pollTimeout {
			t.Errorf("%v after %v, want undecided after %v", err, took, pollTimeout)
		}
		if looks < 60 || looks > 70 {
			t.Errorf("looked %d times, want about 65: the pauses grow to %v", looks, pollMost)
		}
	})
}

func TestPollWaitsAsTheCASaysWithinReason(t *testing.T) {
	t.Parallel()
	for says, want := range map[time.Duration]time.Duration{
		3 * time.Second: 3 * time.Second, 24 * time.Hour: maxPollWait, -time.Second: pollFirst,
	} {
		synctest.Test(t, func(t *testing.T) {
			began, looks := time.Now(), 0
			err := poll(t.Context(), pollTimeout, func(context.Context) (bool, time.Duration, error) {
				looks++
				return looks == 2, says, nil
			})
			if took := time.Since(began); err != nil || took != want {
				t.Errorf("%v: %v after %v, want %v", says, err, took, want)
			}
		})
	}
}

func TestPollEndsWithTheErrorOrTheCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		if err := poll(t.Context(), time.Minute, func(context.Context) (bool, time.Duration, error) { return false, 0, broken }); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := poll(ctx, time.Minute, func(context.Context) (bool, time.Duration, error) { return false, 0, nil })
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errUndecided) {
			t.Errorf("got %v, want the caller's deadline", err)
		}
	})
}

func TestRetryAfterInBothFormsIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for field, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-5": 0, "7": 7 * time.Second, " 8 ": 8 * time.Second, "1.5": 1500 * time.Millisecond,
		"99999999": maxRetryAfter, "99999999999999999999": maxRetryAfter, "1e999": maxRetryAfter, "5m": 0, "NaN": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:03:05 GMT": 0, "Fri, 02 Jan 2099 03:03:05 GMT": maxRetryAfter,
	} {
		if got := parseRetryAfter(field, now); got != want {
			t.Errorf("%q: %v, want %v", field, got, want)
		}
	}
}

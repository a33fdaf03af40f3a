package app

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"postern/docs/tutorial/tld"
)

// A check is given the one of its type that it takes the place of, and nothing
// is made once something has failed.
func TestAdd(t *testing.T) {
	first := &builder{g: new(generation), prev: new(generation)}
	made := add(first, tld.DefaultConfig().Step, func(prev *tld.Check) (*tld.Check, error) {
		if prev != nil {
			t.Error("the first check takes the place of another")
		}
		return tld.New(tld.DefaultConfig())
	})
	next := &builder{g: new(generation), prev: first.g}
	var given *tld.Check
	fault := errors.New("no such file")
	for range 2 {
		got := add(next, tld.DefaultConfig().Step, func(prev *tld.Check) (*tld.Check, error) {
			if given != nil {
				t.Error("made after a failure")
			}
			given = prev
			return prev, fault
		})
		if got != nil {
			t.Error("a check that could not be made")
		}
	}
	if given != made || !errors.Is(next.err, fault) || len(next.g.units) != 0 {
		t.Errorf("given %p, want %p; %v, %d checks", given, made, next.err, len(next.g.units))
	}
}

// A generation that was lent is given back once: when the call ends, or when it
// has taken too long.
func TestLend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a App
		a.current.Store(new(generation))
		g, release := a.lend()
		if g.users.Load() != 1 {
			t.Errorf("%d users of what is lent", g.users.Load())
		}
		release()
		time.Sleep(2 * lentFor)
		synctest.Wait()
		if g.users.Load() != 0 {
			t.Errorf("%d users of what was given back", g.users.Load())
		}
		_, release = a.lend()
		time.Sleep(lentFor - 1)
		synctest.Wait()
		if g.users.Load() != 1 {
			t.Error("taken away before the time")
		}
		time.Sleep(1)
		synctest.Wait()
		if g.users.Load() != 0 {
			t.Error("kept for too long")
		}
		release()
		if g.users.Load() != 0 {
			t.Errorf("%d users: given back twice", g.users.Load())
		}
	})
}

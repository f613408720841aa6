package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// labPoll is how often a lab's state is looked at.
const labPoll = 100 * time.Millisecond

func waitGone(ctx context.Context, dir string) error {
	return labUntil(ctx, func() (bool, error) {
		_, alive, err := ReadLab(dir)
		if errors.Is(err, os.ErrNotExist) {
			return true, nil
		}
		return !alive, err
	})
}

// AwaitLab waits until the lab in dir runs, or until failed says that it will not.
func AwaitLab(ctx context.Context, dir string, failed func() error) (LabState, error) {
	var s LabState
	err := labUntil(ctx, func() (bool, error) {
		if err := failed(); err != nil {
			return false, err
		}
		var alive bool
		var err error
		s, alive, err = ReadLab(dir)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return alive, err
	})
	return s, err
}

func labUntil(ctx context.Context, done func() (bool, error)) error {
	t := time.NewTicker(labPoll)
	defer t.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the lab: %w", ctx.Err())
		case <-t.C:
		}
	}
}

package testenv

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// LabServer is what a lab says of its server.
type LabServer struct {
	PID int `json:"pid,omitempty"` // 0 between its end and the next start
	// Restarts counts how often it ended and was started again; Ended and How are
	// of the last time.
	Restarts int       `json:"restarts,omitempty"`
	Ended    time.Time `json:"ended,omitzero"`
	How      string    `json:"how,omitempty"`
}

const (
	// labRestarts are at most made in labRestartsIn: a server that cannot run
	// shall not take the machine's time from the machines of the lab.
	labRestarts   = 5
	labRestartsIn = time.Minute
	// labRestartSoon is systemd's own RestartSec.
	labRestartSoon = 100 * time.Millisecond
)

// restartWait is how long a restart has to wait at now after the restarts before
// it, oldest first.
func restartWait(before []time.Time, now time.Time) time.Duration {
	if len(before) >= labRestarts {
		if wait := before[len(before)-labRestarts].Add(labRestartsIn).Sub(now); wait > labRestartSoon {
			return wait
		}
	}
	return labRestartSoon
}

// keepServer runs a server until the context ends, as a service manager would:
// one that ends, however it does, is started again. tell gets every change.
func keepServer(ctx context.Context, start func() (*RackServer, error), tell func(LabServer) error, log *slog.Logger) error {
	var state LabServer
	var restarts []time.Time
	for {
		s, err := start()
		if err != nil {
			return err
		}
		state.PID = s.PID()
		if err := tell(state); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.Done():
		}
		state.PID, state.Ended, state.How = 0, time.Now().UTC(), "it ended by itself, without an error"
		if err := s.Err(); err != nil {
			state.How = err.Error()
		}
		wait := restartWait(restarts, time.Now())
		log.Warn("the lab's server ended and is started again", "pid", s.PID(), "how", state.How, "in", wait.Round(time.Millisecond), "restart", state.Restarts+1)
		if err := tell(state); err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		state.Restarts++
		if restarts = append(restarts, time.Now()); len(restarts) > labRestarts {
			restarts = restarts[1:]
		}
	}
}

// String is one line for a person.
func (s LabServer) String() string {
	text := fmt.Sprintf("pid %d", s.PID)
	if s.PID == 0 {
		text = "about to be started again"
	}
	if s.Ended.IsZero() {
		return text
	}
	return fmt.Sprintf("%s, restarts %d, ended last at %s: %s", text, s.Restarts, s.Ended.Local().Format(time.TimeOnly), s.How)
}

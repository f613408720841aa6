package testenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// RackServe says how to start a server in a rack.
type RackServe struct {
	// Recast is the built binary.
	Recast string
	// Data is the server's folder; "" for Dir/data of the rack.
	Data string
	// Args follow "recast serve --data DATA".
	Args []string
	Env  []string  // added to ours
	Log  io.Writer // its output; nil appends to Dir/server.log of the rack
}

// RackServer is a running `recast serve` inside a rack's namespace.
type RackServer struct {
	Data string

	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
}

// Serve starts a server. It gets the rack's operator socket, so that the host
// reaches its API at Operator; it dies with this process or with Close.
func (r *Rack) Serve(o RackServe) (*RackServer, error) {
	if o.Data == "" {
		o.Data = filepath.Join(r.Options.Dir, "data")
	}
	cmd := exec.Command(o.Recast, append([]string{"serve", "--data", o.Data}, o.Args...)...)
	cmd.Env = append(append(os.Environ(), o.Env...), "LISTEN_FDS=1", "LISTEN_FDNAMES=operator")
	cmd.ExtraFiles = []*os.File{r.operator} // file descriptor 3, the first that LISTEN_FDS counts
	if o.Log == nil {
		f, err := os.OpenFile(filepath.Join(r.Options.Dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
		defer f.Close()
		o.Log = f
	}
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	if err := r.Net.Start(cmd); err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	s := newRackServer(o.Data, cmd)
	r.servers = append(r.servers, s)
	return s, nil
}

// newRackServer waits for a process that was started.
func newRackServer(data string, cmd *exec.Cmd) *RackServer {
	s := &RackServer{Data: data, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = cmd.Wait()
	}()
	return s
}

// PID of the process.
func (s *RackServer) PID() int { return s.cmd.Process.Pid }

// Done is closed when the process has ended, however it did.
func (s *RackServer) Done() <-chan struct{} { return s.done }

// Err is how the process ended; nil while it runs and after a clean end.
func (s *RackServer) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Kill is kill -9, and waits for the end.
func (s *RackServer) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

// Stop is SIGTERM, and waits: the server may take as long to drain.
func (s *RackServer) Stop(within time.Duration) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop server: %w", err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.err
	case <-timer.C:
		return fmt.Errorf("stop server: it still runs after %v", within)
	}
}

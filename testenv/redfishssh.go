package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// redfishSSH gives out the console of the BMC's first machine by SSH, to its
// accounts and to one of them at a time. Nil gives out none.
type redfishSSH struct {
	bmc    *RedfishBMC
	port   Consoled
	config *ssh.ServerConfig
	key    ssh.PublicKey
	at     int // its TCP port

	mu    sync.Mutex
	conns map[net.Conn]bool
	busy  bool // somebody has the console
}

// newRedfishSSH begins to serve; it ends with the BMC.
func newRedfishSSH(b *RedfishBMC) (*redfishSSH, error) {
	l := b.options.SSH
	if l == nil {
		return nil, nil
	}
	port, ok := b.options.Machine.(Consoled)
	if !ok {
		_ = l.Close()
		return nil, errors.New("a console of a machine without a serial port")
	}
	// The key of the first certificate, so that it is kept where that is.
	signer, err := ssh.NewSignerFromKey(b.options.Certificate.PrivateKey)
	if err != nil {
		return nil, err
	}
	s := &redfishSSH{bmc: b, port: port, key: signer.PublicKey(), conns: map[net.Conn]bool{}}
	if at, ok := l.Addr().(*net.TCPAddr); ok {
		s.at = at.Port
	}
	s.config = &ssh.ServerConfig{ServerVersion: "SSH-2.0-recast-bmc", MaxAuthTries: 3,
		PasswordCallback: func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if !b.allows(c.User(), string(password)) {
				return nil, errors.New("wrong user or password")
			}
			return nil, nil
		}}
	s.config.AddHostKey(signer)
	b.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.work.Go(func() { s.serve(conn) })
		}
	})
	b.work.Go(func() {
		<-b.ctx.Done()
		_ = l.Close()
		s.drop()
	})
	return s, nil
}

// HostKey is the fingerprint of its SSH host key, "" without SSH.
func (b *RedfishBMC) HostKey() string {
	if b.ssh == nil {
		return ""
	}
	return ssh.FingerprintSHA256(b.ssh.key)
}

// drop ends every connection, as a restart of the BMC does.
func (s *redfishSSH) drop() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// tells is what the system says of its console; tellsOld what the manager does.
func (s *redfishSSH) tells(of *redfishSystem) map[string]any {
	if s == nil || s.bmc.options.OldConsole || of != s.bmc.systems[0] {
		return nil
	}
	service := map[string]any{"ServiceEnabled": true, "Port": s.at, "SharedWithManagerCLI": s.bmc.options.SSHCommand != ""}
	if c := s.bmc.options.SSHCommand; c != "" {
		service["ConsoleEntryCommand"] = c
	}
	return map[string]any{"MaxConcurrentSessions": 1, "SSH": service, "IPMI": map[string]any{"ServiceEnabled": false}}
}

func (s *redfishSSH) tellsOld() map[string]any {
	if s == nil || !s.bmc.options.OldConsole {
		return nil
	}
	return map[string]any{"ServiceEnabled": true, "MaxConcurrentSessions": 1, "ConnectTypesSupported": []string{"SSH"}}
}

func (s *redfishSSH) protocol() map[string]any {
	if s == nil {
		return map[string]any{"ProtocolEnabled": false, "Port": nil}
	}
	return map[string]any{"ProtocolEnabled": true, "Port": s.at}
}

func (s *redfishSSH) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.conns[conn] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	if s.bmc.ctx.Err() != nil || s.bmc.now().Hang {
		return
	}
	_, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { ssh.DiscardRequests(requests) })
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(ssh.UnknownChannelType, "only a session")
			continue
		}
		s.mu.Lock()
		taken := s.busy
		s.busy = true
		s.mu.Unlock()
		if taken {
			_ = c.Reject(ssh.ResourceShortage, "the console is in use")
			continue
		}
		work.Go(func() {
			defer func() {
				s.mu.Lock()
				s.busy = false
				s.mu.Unlock()
			}()
			if channel, asked, err := c.Accept(); err == nil {
				s.session(channel, asked)
			}
		})
	}
}

// session passes on between a shell that was asked for and the serial port.
func (s *redfishSSH) session(channel ssh.Channel, asked <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(s.bmc.ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer channel.Close()
	defer cancel()
	for r := range asked {
		ok := false
		switch r.Type {
		case "pty-req", "env", "window-change":
			ok = true
		case "shell":
			if ok = ctx.Err() == nil; ok {
				work.Go(func() {
					defer channel.Close()
					if err := s.shell(ctx, channel); err != nil {
						fmt.Fprintf(channel, "%v\r\n", err)
					}
				})
			}
		case "break":
			if m, can := s.port.(Breaker); can {
				ok = m.Break(ctx) == nil
			}
		}
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
	}
}

// shell is the BMC's own where a command leads to the console, else the console.
func (s *redfishSSH) shell(ctx context.Context, channel ssh.Channel) error {
	if want := s.bmc.options.SSHCommand; want != "" {
		line, one := []byte{}, make([]byte, 1)
		_, _ = io.WriteString(channel, "bmc> ")
		for !bytes.HasSuffix(line, []byte("\r")) {
			if _, err := channel.Read(one); err != nil {
				return nil
			}
			line = append(line, one[0])
		}
		if string(bytes.TrimSpace(line)) != want {
			return errors.New("unknown command")
		}
	}
	// The port comes and goes with the machine's power, as behind IPMI.
	line := &ipmiSOL{port: s.port, done: make(chan struct{})}
	line.room = sync.NewCond(&line.mu)
	follow, cancel := context.WithCancel(ctx)
	line.cancel = cancel
	go line.follow(follow)
	said := make(chan struct{})
	go func() {
		defer close(said)
		for {
			text := line.next()
			if text == nil {
				return
			}
			if _, err := channel.Write(text); err != nil {
				return
			}
		}
	}()
	defer func() { _ = line.Close(); <-said }()
	_, err := io.Copy(line, channel)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

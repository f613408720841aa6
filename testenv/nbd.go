package testenv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// nbdServer hands a Medium to QEMU block by block, over the network block device
// protocol (NBD, fixed newstyle), read only where it cannot be written.
type nbdServer struct {
	medium   Medium
	listener net.Listener
	work     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	ended bool
}

// diskMedium is a Medium that is a whole disk: it is read as it is, and written.
type diskMedium interface {
	Medium
	io.WriterAt
	Sync() error
}

const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption      = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdSimpleReply = 0x67446698
	nbdFixed       = 1 << 0 // handshake flags, of both sides
	nbdNoZeroes    = 1 << 1
	nbdReadOnly    = 1<<0 | 1<<1 // flags of the export: it has any, and is read only
	nbdWritten     = 1<<0 | 1<<2 // or it is written, and flushed
	nbdExportName  = 1
	nbdAbort       = 2
	nbdInfo        = 6
	nbdGo          = 7
	nbdAck         = 1
	nbdInfoReply   = 3
	nbdUnsupported = 1<<31 | 1
	nbdInvalid     = 1<<31 | 3
	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdEIO         = 5
	nbdEINVAL      = 22
	nbdOptionMost  = 64 << 10
	nbdMost        = 32 << 20  // bytes of a request
	nbdSector      = 2048      // of a CD: what is beyond the end of the image is zero
	nbdReadAhead   = 256 << 10 // firmware asks sector by sector, and a web server takes a while
)

var errNBD = errors.New("not the network block device protocol")

// serveNBD serves on the listener until Close, which closes it.
func serveNBD(listener net.Listener, medium Medium) *nbdServer {
	s := &nbdServer{medium: medium, listener: listener, conns: map[net.Conn]bool{}}
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			ended := s.ended
			if !ended {
				s.conns[conn] = true
				s.work.Add(1)
			}
			s.mu.Unlock()
			if ended {
				conn.Close()
				return
			}
			go func() {
				defer s.work.Done()
				_ = s.serve(conn) // the machine sees a broken drive
				conn.Close()
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			}()
		}
	}()
	return s
}

// Close ends every connection and waits.
func (s *nbdServer) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.ended = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return err
}

func (s *nbdServer) size() uint64 {
	if _, ok := s.medium.(diskMedium); ok {
		return uint64(s.medium.Size())
	}
	return uint64((s.medium.Size() + nbdSector - 1) / nbdSector * nbdSector)
}

// serve is one conversation: the handshake, the options, then requests.
func (s *nbdServer) serve(conn io.ReadWriter) error {
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	put := func(words ...any) error {
		for _, w := range words {
			if err := binary.Write(out, binary.BigEndian, w); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(put(uint64(nbdMagic), uint64(nbdOption), uint16(nbdFixed|nbdNoZeroes)), out.Flush()); err != nil {
		return err
	}
	var flags uint32
	if err := binary.Read(in, binary.BigEndian, &flags); err != nil {
		return err
	}
	export := uint16(nbdReadOnly)
	if _, ok := s.medium.(diskMedium); ok {
		export = nbdWritten
	}
	for {
		var option struct {
			Magic        uint64
			Option, Size uint32
		}
		if err := binary.Read(in, binary.BigEndian, &option); err != nil {
			return err
		}
		if option.Magic != nbdOption || option.Size > nbdOptionMost {
			return errNBD
		}
		data := make([]byte, option.Size)
		if _, err := io.ReadFull(in, data); err != nil {
			return err
		}
		reply := func(kind uint32) error {
			return put(uint64(nbdOptionReply), option.Option, kind, uint32(0))
		}
		var err error
		start := false
		switch option.Option {
		case nbdExportName:
			if err = put(s.size(), export); err == nil && flags&nbdNoZeroes == 0 {
				err = put([124]byte{})
			}
			start = true
		case nbdInfo, nbdGo:
			if !nbdInfoRequest(data) {
				err = reply(nbdInvalid)
				break
			}
			info := struct {
				Kind  uint16
				Size  uint64
				Flags uint16
			}{0, s.size(), export}
			err = errors.Join(put(uint64(nbdOptionReply), option.Option, uint32(nbdInfoReply), uint32(binary.Size(info)), info), reply(nbdAck))
			start = option.Option == nbdGo
		case nbdAbort:
			return errors.Join(reply(nbdAck), out.Flush())
		default:
			err = reply(nbdUnsupported)
		}
		if err := errors.Join(err, out.Flush()); err != nil {
			return err
		}
		if start {
			return s.transmit(in, out)
		}
	}
}

// nbdInfoRequest checks the data of the options info and go: a name and a list.
func nbdInfoRequest(data []byte) bool {
	if len(data) < 6 {
		return false
	}
	name := binary.BigEndian.Uint32(data)
	rest := data[4:]
	if uint64(name)+2 > uint64(len(rest)) {
		return false
	}
	rest = rest[name:]
	return len(rest) == 2+2*int(binary.BigEndian.Uint16(rest))
}

// transmit answers requests, one after the other.
func (s *nbdServer) transmit(in *bufio.Reader, out *bufio.Writer) error {
	disk, written := s.medium.(diskMedium)
	ahead := &nbdAhead{medium: s.medium}
	read := ahead.read
	if written {
		read = func(b []byte, at int64) error { _, err := disk.ReadAt(b, at); return err }
	}
	for {
		var request struct {
			Magic       uint32
			Flags, Kind uint16
			Cookie, At  uint64
			Size        uint32
		}
		if err := binary.Read(in, binary.BigEndian, &request); err != nil {
			return err
		}
		if request.Magic != nbdRequest {
			return errNBD
		}
		var data []byte
		code := uint32(0)
		beyond := request.Size > nbdMost || request.At > s.size() || uint64(request.Size) > s.size()-request.At
		switch request.Kind {
		case nbdWrite:
			if !written || beyond {
				return fmt.Errorf("%w: a write of %d bytes at %d", errNBD, request.Size, request.At)
			}
			data := make([]byte, request.Size)
			if _, err := io.ReadFull(in, data); err != nil {
				return err
			}
			if _, err := disk.WriteAt(data, int64(request.At)); err != nil {
				code = nbdEIO
			}
		case nbdRead:
			switch {
			case beyond:
				code = nbdEINVAL
			default:
				data = make([]byte, request.Size)
				if err := read(data, int64(request.At)); err != nil {
					data, code = nil, nbdEIO
				}
			}
		case nbdDisconnect:
			return nil
		case nbdFlush:
			if written && disk.Sync() != nil {
				code = nbdEIO
			}
		default:
			return fmt.Errorf("%w: request %d, which was not offered", errNBD, request.Kind)
		}
		head := make([]byte, 16)
		binary.BigEndian.PutUint32(head, nbdSimpleReply)
		binary.BigEndian.PutUint32(head[4:], code)
		binary.BigEndian.PutUint64(head[8:], request.Cookie)
		if _, err := out.Write(head); err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// nbdAhead reads a medium in larger pieces than it is asked for, and keeps one.
type nbdAhead struct {
	medium Medium
	at     int64
	piece  []byte
}

func (a *nbdAhead) read(p []byte, at int64) error {
	for len(p) > 0 {
		if at >= a.medium.Size() {
			clear(p) // the rest of the last sector
			return nil
		}
		if at < a.at || at >= a.at+int64(len(a.piece)) {
			from := at / nbdReadAhead * nbdReadAhead
			piece := make([]byte, min(nbdReadAhead, a.medium.Size()-from))
			if n, err := a.medium.ReadAt(piece, from); n < len(piece) {
				return fmt.Errorf("read medium at %d: %w", from, err)
			}
			a.at, a.piece = from, piece
		}
		n := copy(p, a.piece[at-a.at:])
		p, at = p[n:], at+int64(n)
	}
	return nil
}

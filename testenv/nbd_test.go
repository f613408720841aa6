package testenv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bytesMedium is a Medium in memory.
type bytesMedium struct{ *bytes.Reader }

func (bytesMedium) Name() string { return "m.iso" }

func TestQemuImgReadsAMedium(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img (apt-get install qemu-utils)")
	}
	for _, size := range []int{1, 2048, nbdReadAhead + 5000, 3<<20 + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			content := make([]byte, size)
			for i := range content {
				content[i] = byte(i>>8) ^ byte(i*13)
			}
			dir := t.TempDir()
			listener, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			s := serveNBD(listener, bytesMedium{bytes.NewReader(content)})
			out := filepath.Join(dir, "copy")
			command := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///?socket="+filepath.Join(dir, "s"), out)
			if text, err := command.CombinedOutput(); err != nil {
				t.Errorf("qemu-img: %v: %s", err, text)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			want := append(content, make([]byte, (nbdSector-size%nbdSector)%nbdSector)...)
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes were copied, want %d, or they differ", len(got), len(want))
			}
		})
	}
}

// rwPipe is a conversation whose other side is written beforehand.
type rwPipe struct {
	io.Reader
	io.Writer
}

func FuzzNBD(f *testing.F) {
	var hello bytes.Buffer
	for _, w := range []any{uint32(3), uint64(nbdOption), uint32(nbdGo), uint32(6), uint32(0), uint16(0), uint32(nbdRequest), uint16(0), uint16(0), uint64(7), uint64(0), uint32(512)} {
		if err := binary.Write(&hello, binary.BigEndian, w); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(hello.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		content := []byte("medium")
		s := &nbdServer{medium: bytesMedium{bytes.NewReader(content)}}
		var out bytes.Buffer
		if err := s.serve(rwPipe{bytes.NewReader(in), &out}); err == nil && out.Len() < 18 {
			t.Errorf("ended well after %d bytes", out.Len())
		}
	})
}

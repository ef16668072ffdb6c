/* Open MPI between two ranks, to compare with: mpi round-trip | bandwidth | rate. Rank 0 prints one JSON object. */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 10, WINDOW = 64, TAG = 0 };

static int rank;

/* 8 B there and back: microseconds. */
static double round_trip(void)
{
	enum { ROUNDS = 2000 };
	char message[8] = { 0 };
	double start = MPI_Wtime();
	for (int round = 0; round < ROUNDS; round++) {
		if (rank == 0)
			MPI_Send(message, sizeof message, MPI_BYTE, 1, TAG, MPI_COMM_WORLD);
		MPI_Recv(message, sizeof message, MPI_BYTE, 1 - rank, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		if (rank == 1)
			MPI_Send(message, sizeof message, MPI_BYTE, 0, TAG, MPI_COMM_WORLD);
	}
	return (MPI_Wtime() - start) * 1e6 / ROUNDS;
}

/* Messages one way, so many at once; the other rank says when it has each lot. Seconds. */
static double one_way(char *memory, int bytes, int at_once, int lots)
{
	MPI_Request requests[WINDOW];
	char done = 0;
	double start = MPI_Wtime();
	for (int lot = 0; lot < lots; lot++) {
		for (int n = 0; n < at_once; n++) {
			char *place = memory + (size_t)n * bytes;
			if (rank == 0)
				MPI_Isend(place, bytes, MPI_BYTE, 1, TAG, MPI_COMM_WORLD, &requests[n]);
			else
				MPI_Irecv(place, bytes, MPI_BYTE, 0, TAG, MPI_COMM_WORLD, &requests[n]);
		}
		MPI_Waitall(at_once, requests, MPI_STATUSES_IGNORE);
	}
	if (rank == 0)
		MPI_Recv(&done, 1, MPI_BYTE, 1, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	else
		MPI_Send(&done, 1, MPI_BYTE, 0, TAG, MPI_COMM_WORLD);
	return MPI_Wtime() - start;
}

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	const char *mode = argc > 1 ? argv[1] : "";
	const char *unit = "us";
	char *memory = calloc(8, 1 << 20);
	double values[RUNS + 1];
	for (int run = 0; run <= RUNS && memory; run++) {
		if (!strcmp(mode, "bandwidth")) {
			unit = "GB/s";
			values[run] = 8.0 * 16 * (1 << 20) / one_way(memory, 1 << 20, 8, 16) / 1e9;
		} else if (!strcmp(mode, "rate")) {
			unit = "M/s";
			values[run] = WINDOW * 500.0 / one_way(memory, 64, WINDOW, 500) / 1e6;
		} else {
			values[run] = round_trip();
		}
	}
	if (rank == 0) {
		/* The first run warms up. */
		printf("{\"name\":\"mpi %s\",\"unit\":\"%s\",\"values\":[", mode, unit);
		for (int run = 1; run <= RUNS; run++)
			printf("%s%.6f", run > 1 ? "," : "", values[run]);
		printf("],\"note\":\"Open MPI %d.%d.%d over tcp, spinning, not pinned\"}\n", OMPI_MAJOR_VERSION,
		       OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION);
	}
	free(memory);
	MPI_Finalize();
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scan.c - questions asked of a table of taxi trips that lies in memory column by column.
 *
 * Each question streams through the few columns that it needs, several at a time, and does little work on each row; filters
 * that keep few rows then pick single values out of further columns. Nothing is used twice within a question.
 */
#include "kernel.h"

#define ZONES 263u
#define AIRPORT 132u
#define CARD 1u
#define WEEK (7 * 86400u)
#define STREAM 19u
#define HOURS 24u
#define PASSENGERS 7u

struct trips {
	uint64_t rows;
	uint32_t *pickup;   /* seconds since the year began; rows are in this order, as in the published files */
	uint32_t *dropoff;
	uint32_t *distance; /* hundredths of a mile */
	uint32_t *fare, *tip, *total; /* cents */
	uint16_t *from, *to;	      /* zones */
	uint8_t *passengers, *payment;
};

struct answers {
	uint64_t paid[4];			 /* total by kind of payment */
	uint64_t by_hour[HOURS][PASSENGERS + 1]; /* trips by hour and passengers */
	uint64_t airport_trips, airport_tips;	 /* from the airport, above ten miles, by card */
	uint64_t week_trips, week_total;	 /* in the tenth week */
	uint64_t slow_trips, slow_fare;		 /* below six miles an hour, at least a mile */
	uint64_t busiest_zone, busiest_trips;
};

/* Short trips are the most common: the square of a number that is spread evenly. */
static void generate(struct trips *t)
{
	uint32_t pace = (uint32_t)(365ul * 86400 / t->rows);

	for (uint64_t i = 0; i < t->rows; i++) {
		uint64_t a = kernel_random(STREAM, 3 * i), b = kernel_random(STREAM, 3 * i + 1), c = kernel_random(STREAM, 3 * i + 2);
		uint32_t part = (uint32_t)(a % 1024), miles = part * part * 20 / 10486 + 20, speed = 4 + (uint32_t)(a >> 10) % 28;

		t->pickup[i] = (uint32_t)(365ul * 86400 * i / t->rows) + (pace ? (uint32_t)(a >> 32) % pace : 0);
		t->distance[i] = miles;
		t->dropoff[i] = t->pickup[i] + miles * 36 / speed;
		t->passengers[i] = (uint8_t)(b % 8 < 5 ? 1 : 1 + (b >> 8) % (PASSENGERS - 1));
		t->payment[i] = (uint8_t)((b >> 16) % 16 < 11 ? CARD : 2 + (b >> 24) % 2);
		t->from[i] = (uint16_t)(1 + ((b >> 32) % ZONES) * ((b >> 48) % ZONES) / ZONES);
		t->to[i] = (uint16_t)(1 + c % ZONES);
		t->fare[i] = 250 + miles * 25 / 10 + (uint32_t)(c >> 32) % 400;
		t->tip[i] = t->payment[i] == CARD ? t->fare[i] * ((uint32_t)(c >> 48) % 30) / 100 : 0;
		t->total[i] = t->fare[i] + t->tip[i] + 80;
	}
}

static void total_by_payment(const struct trips *t, struct answers *a)
{
	for (uint64_t i = 0; i < t->rows; i++)
		a->paid[t->payment[i]] += t->total[i];
}

static void trips_by_hour(const struct trips *t, struct answers *a)
{
	for (uint64_t i = 0; i < t->rows; i++)
		a->by_hour[t->pickup[i] / 3600 % HOURS][t->passengers[i]]++;
}

static void airport_tips(const struct trips *t, struct answers *a)
{
	for (uint64_t i = 0; i < t->rows; i++) {
		if (t->from[i] != AIRPORT || t->distance[i] <= 1000 || t->payment[i] != CARD)
			continue;
		a->airport_trips++;
		a->airport_tips += t->tip[i];
	}
}

static uint64_t first_since(const struct trips *t, uint32_t when)
{
	uint64_t low = 0, high = t->rows;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		if (t->pickup[middle] < when)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void one_week(const struct trips *t, struct answers *a)
{
	uint64_t end = first_since(t, 10 * WEEK);

	for (uint64_t i = first_since(t, 9 * WEEK); i < end; i++) {
		a->week_trips++;
		a->week_total += t->total[i];
	}
}

static void slow_trips(const struct trips *t, struct answers *a)
{
	for (uint64_t i = 0; i < t->rows; i++) {
		if (t->distance[i] < 100 || (uint64_t)t->distance[i] * 36 >= 6ul * (t->dropoff[i] - t->pickup[i]))
			continue;
		a->slow_trips++;
		a->slow_fare += t->fare[i];
	}
}

static void busiest_zone(const struct trips *t, struct answers *a)
{
	uint64_t trips[ZONES + 1] = { 0 };

	for (uint64_t i = 0; i < t->rows; i++)
		trips[t->to[i]]++;
	for (uint32_t zone = 1; zone <= ZONES; zone++) {
		if (trips[zone] <= a->busiest_trips)
			continue;
		a->busiest_trips = trips[zone];
		a->busiest_zone = zone;
	}
}

static void answer(const struct trips *t, struct answers *a)
{
	memset(a, 0, sizeof(*a));
	total_by_payment(t, a);
	trips_by_hour(t, a);
	airport_tips(t, a);
	one_week(t, a);
	slow_trips(t, a);
	busiest_zone(t, a);
}

static void check(const struct trips *t, const struct answers *a)
{
	uint64_t rows = 0, paid = 0;

	for (unsigned hour = 0; hour < HOURS; hour++)
		for (unsigned n = 0; n <= PASSENGERS; n++)
			rows += a->by_hour[hour][n];
	for (uint64_t i = 0; i < t->rows; i++)
		paid += t->fare[i] + t->tip[i] + 80;
	kernel_must(rows == t->rows, "the hours' trips are not all trips");
	kernel_must(paid == a->paid[CARD] + a->paid[2] + a->paid[3], "the payments are not fares, tips and fees");
}

static void allocate(struct trips *t, uint64_t rows)
{
	uint32_t **wide[] = { &t->pickup, &t->dropoff, &t->distance, &t->fare, &t->tip, &t->total };

	t->rows = rows;
	for (size_t i = 0; i < sizeof(wide) / sizeof(wide[0]); i++)
		*wide[i] = kernel_alloc(rows, sizeof(**wide[i]));
	t->from = kernel_alloc(rows, sizeof(*t->from));
	t->to = kernel_alloc(rows, sizeof(*t->to));
	t->passengers = kernel_alloc(rows, 1);
	t->payment = kernel_alloc(rows, 1);
}

int main(int argc, char **argv)
{
	enum { ROWS, ROUNDS };
	struct kernel_option options[] = {
		[ROWS] = { "rows", "trips", 2 << 20, 1, 1ul << 32, NULL },
		[ROUNDS] = { "rounds", "how often all questions are asked", 6, 1, 10000, NULL },
		{ 0 },
	};
	static struct trips t;
	static struct answers a;
	uint64_t checksum = 0;

	kernel_parse(argc, argv, "Filters and aggregates over generated taxi trips.", options);
	kernel_start("scan");
	allocate(&t, options[ROWS].value);
	generate(&t);

	kernel_ready();
	for (uint64_t i = 0; i < options[ROUNDS].value; i++)
		answer(&t, &a);
	double seconds = kernel_seconds_since(&kernel.began);

	check(&t, &a);
	for (const uint64_t *word = (const uint64_t *)&a; word < (const uint64_t *)(&a + 1); word++)
		checksum = kernel_fold(checksum, *word);
	return kernel_report(json_pack("{s:[I,I,I], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "paid", (json_int_t)a.paid[1],
				       (json_int_t)a.paid[2], (json_int_t)a.paid[3], "airport_trips", (json_int_t)a.airport_trips,
				       "airport_tips", (json_int_t)a.airport_tips, "week_trips", (json_int_t)a.week_trips, "week_total",
				       (json_int_t)a.week_total, "slow_trips", (json_int_t)a.slow_trips, "slow_fare",
				       (json_int_t)a.slow_fare, "busiest_zone", (json_int_t)a.busiest_zone, "busiest_trips",
				       (json_int_t)a.busiest_trips),
			     seconds, checksum);
}
